"""TAESD and live previews in Forge, with real weights.  Needs VAE_KIT_FORGE_DIR and VAE_KIT_TEST_WEIGHTS."""

import pytest
import taesd_rows as rows
from installation import FORGE, WebUi, start

pytestmark = pytest.mark.webui

STEPS = 20  # long enough for some polls


@pytest.fixture(scope="module")
def models(tmp_path_factory, weights_dir):
    return rows.models_folder(FORGE.folder(), tmp_path_factory.mktemp("links") / "models", weights_dir)


@pytest.fixture(scope="module")
def running(tmp_path_factory, models):
    webui = start(FORGE, tmp_path_factory.mktemp("forge"), f"--models-dir={models}")
    yield webui
    webui.stop()


@pytest.fixture
def webui(running: WebUi):
    """The web UI; a test that left a traceback in the log fails."""
    running.checked = len(running.log)
    yield running
    assert "Traceback" not in running.log[running.checked :], running.log[running.checked :]
    assert not [name for name in rows.OWN_NAMES if name in running.log]


def test_a_picture_comes_back_through_taesd_and_the_infotext_says_so(webui):
    rows.check_round_trip(webui)


def test_hires_fix_names_taesd(webui):
    rows.check_hires_infotext(webui, hr_additional_modules=["Use same choices"])


@pytest.mark.parametrize("method", ["TAESD", "Approx cheap", "Approx NN"])
def test_previews_change_over_the_steps_and_do_not_change_the_picture(webui, method):
    rows.check_previews(webui, method, STEPS)


def test_the_preview_shows_the_denoised_prediction(webui):
    rows.check_that_what_is_shown_is_what_is_decoded_at_last(webui, STEPS)


def test_without_files_nothing_stops_and_one_line_says_what_to_install(webui, models):
    rows.check_missing_files(webui, models, STEPS)


def test_a_method_that_does_not_exist_is_refused(webui):
    rows.check_bad_method(webui)
