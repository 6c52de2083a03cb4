"""Tensors in, tensors out.  Knows torch and safetensors; knows neither a host nor gradio nor picture files."""
