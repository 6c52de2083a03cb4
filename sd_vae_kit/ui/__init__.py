"""gradio components made from plain data; runs on gradio 3.41, 4.40 and the current release."""
