"""reForge's and Forge Classic's way to load a chosen VAE: in a thread that prints errors and returns nothing."""

import threading
import traceback
import types

import pytest
from fake_a1111 import FakeA1111


class FakeReforge(FakeA1111):
    """A1111 with modules_forge/main_thread.py of reForge 3b56b268, which says so on the console where it fails."""

    def __init__(self, folder):
        super().__init__(folder)
        self.printed = []
        self._module("modules_forge").__path__ = []
        self._module("modules_forge.main_thread", run_and_wait_result=self._run_and_wait_result)
        self.modules["modules_forge"].main_thread = self.modules["modules_forge.main_thread"]
        run, lock = self._run_and_wait_result, self.call_queue.queue_lock

        def onchange():  # initialize_util.py:194: wrap_queued_call(lambda: main_thread.run_and_wait_result(...))
            with lock:
                run(self.sd_vae.reload_vae_weights)

        self.shared.opts.data_labels["sd_vae"].onchange = onchange

    def _run_and_wait_result(self, func, *args, **kwargs):
        task = types.SimpleNamespace(result=None)

        def work():
            try:
                task.result = func(*args, **kwargs)
            except Exception:
                self.printed.append(traceback.format_exc())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return task.result


@pytest.fixture
def program_class():
    return FakeReforge


@pytest.fixture
def said(webui):
    from sd_vae_kit.webui.running import running

    lines = []
    running().base.messages.listen(lambda message, level: lines.append((level, message)))
    return lines


def test_it_is_told_by_its_loading_thread(webui):
    from sd_vae_kit.webui.running import running

    assert running().name == "reForge"


def test_without_us_a_refused_choice_stays_selected_and_is_a_traceback(tmp_path):
    """The fault this is about, so that the fake shows it."""
    fake = FakeReforge(tmp_path)
    fake.sd_vae.refresh_vae_list()
    fake.shared.sd_model = fake.load_model()
    assert fake.shared.opts.set("sd_vae", "cut.safetensors") is True
    assert fake.shared.opts.sd_vae == "cut.safetensors"
    assert len(fake.printed) == 1


def test_a_choice_loads_and_a_refused_one_goes_back_with_one_line(webui, said):
    opts = webui.shared.opts
    assert opts.set("sd_vae", "plain.safetensors") is True
    assert webui.sd_vae.get_loaded_vae_name() == "plain.safetensors"
    expected = webui.decode()
    assert opts.set("sd_vae", "cut.safetensors") is False
    assert opts.sd_vae == "plain.safetensors"
    assert webui.printed == []
    assert [level for level, _ in said] == ["error"]
    assert said[0][1].endswith("The option stays at plain.safetensors.")
    assert webui.decode().equal(expected)


def test_the_api_is_told(webui):
    with pytest.raises(Exception, match="The option stays at Automatic") as caught:
        webui.shared.opts.set("sd_vae", "cut.safetensors", is_api=True)
    assert caught.value.status_code == 422
    assert webui.printed == []


def test_taken_away_the_programs_own_handler_is_back(webui):
    from sd_vae_kit.webui import callbacks

    ours = webui.shared.opts.data_labels["sd_vae"].onchange
    callbacks.undo_patches()
    assert webui.shared.opts.data_labels["sd_vae"].onchange is not ours
