"""Patches of foreign objects: found again, undone, and passing through where somebody wrapped them."""

import functools
import types

import pytest

from sd_vae_kit.hosts.patch import Patches


@pytest.fixture
def module():
    module = types.ModuleType("host_module")
    module.load = lambda x: f"host {x}"
    return module


class Model:
    def decode(self, x):
        return f"decoded {x}"


def around(original):
    return lambda *args: f"ours({original(*args)})"


def test_a_patch_runs_and_is_undone(module):
    original, patches = module.load, Patches()
    patches.replace(module, "load", around)
    assert module.load(1) == "ours(host 1)"
    assert patches.is_applied(module, "load")
    patches.undo()
    assert module.load is original
    assert not patches.is_applied(module, "load")


def test_an_instance_loses_the_attribute_it_did_not_have():
    model, patches = Model(), Patches()
    patches.replace(model, "decode", around)
    assert model.decode("z") == "ours(decoded z)"
    patches.undo()
    assert "decode" not in vars(model)
    assert model.decode("z") == "decoded z"


def test_a_leftover_is_replaced_not_wrapped(module):
    original, patches = module.load, Patches()
    for _ in range(3):  # three requests that raised before they undid anything
        patches.replace(module, "load", around)
    assert module.load(1) == "ours(host 1)"
    patches.undo()
    assert module.load is original


def test_a_leftover_of_another_adapter_object_is_found(module):
    original = module.load
    Patches().replace(module, "load", around)  # its owner was lost on Reload UI
    patches = Patches()
    patches.replace(module, "load", around)
    assert module.load(1) == "ours(host 1)"
    patches.undo()
    assert module.load is original


def test_undoing_below_a_foreign_wrapper_keeps_the_wrapper(module):
    patches = Patches()
    patches.replace(module, "load", around)
    inner = module.load
    module.load = lambda x: f"theirs({inner(x)})"
    assert module.load(1) == "theirs(ours(host 1))"
    patches.undo()
    assert module.load(1) == "theirs(host 1)"


def test_patching_again_above_a_foreign_wrapper_does_not_double(module):
    patches = Patches()
    patches.replace(module, "load", around)
    inner = module.load
    module.load = lambda x: f"theirs({inner(x)})"
    patches.undo()
    patches.replace(module, "load", around)
    assert module.load(1) == "ours(theirs(host 1))"


def test_a_leftover_below_a_foreign_wrapper_does_not_double(module):
    patches = Patches()
    patches.replace(module, "load", around)
    inner = module.load

    @functools.wraps(inner)  # copies our mark onto their wrapper
    def theirs(x):
        return f"theirs({inner(x)})"

    module.load = theirs
    patches.replace(module, "load", around)
    assert module.load(1) == "ours(theirs(host 1))"
    patches.undo()
    assert module.load(1) == "theirs(host 1)"


def test_one_owner_can_be_undone_alone(module):
    model, patches = Model(), Patches()
    patches.replace(model, "decode", around)
    patches.replace(module, "load", around)
    patches.undo(model)
    assert model.decode("z") == "decoded z"
    assert module.load(1) == "ours(host 1)"


def test_an_attribute_the_host_lacks_is_an_error_and_nothing_changes(module):
    patches = Patches()
    with pytest.raises(AttributeError, match="unload"):
        patches.replace(module, "unload", around)
    patches.undo()
    assert not hasattr(module, "unload")
