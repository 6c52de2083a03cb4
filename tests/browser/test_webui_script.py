"""vae_kit.js beside nothing but the names that every web UI puts on its pages, SD.Next among them."""

from conftest import ROOT

PAGE = """
<div id="tabs"><div class="tab-nav"><button class="selected">txt2img</button><button>VAE Kit</button></div></div>
<div id="vae_kit_txt2img_refresh"></div><div id="vae_kit_img2img_refresh"></div>
<div id="vae_kit_catalogue_wanted"><textarea></textarea></div><button id="vae_kit_catalogue_look">look</button>
<a data-vae-kit-entry="Some VAE" href="#">Some VAE</a>
<script>
    const loaded = [], changed = [], options = [], looked = [];
    window.gradioApp = () => document;
    window.onUiLoaded = (callback) => loaded.push(callback);
    window.onUiTabChange = (callback) => changed.push(callback);
    window.onOptionsChanged = (callback) => options.push(callback);
    window.updateInput = (field) => field.dispatchEvent(new Event("input"));
    const look = document.getElementById("vae_kit_catalogue_look");
    look.addEventListener("click", () => looked.push(document.querySelector("textarea").value));
    for (const button of document.querySelectorAll(".tab-nav button")) {
        button.addEventListener("click", () => {
            document.querySelector(".selected").classList.remove("selected");
            button.classList.add("selected");
            changed.forEach((callback) => callback());
        });
    }
</script>
"""
SCRIPT = (ROOT / "javascript" / "vae_kit.js").read_text("utf-8")


def opened(browser):
    page = browser.new_page()
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.set_content(PAGE)
    page.add_script_tag(content=SCRIPT)
    page.evaluate("loaded.forEach((callback) => callback())")
    return page


def test_whoever_opens_the_tab_sees_the_files_that_are_there_now(browser):
    page = opened(browser)
    page.get_by_role("button", name="VAE Kit").click()
    page.wait_for_function("looked.length === 1")
    page.get_by_role("button", name="txt2img").click()
    page.wait_for_timeout(400)
    assert page.evaluate("looked") == [""], "another tab looks for nothing"
    assert page.faults == []


def test_a_link_leads_to_the_vae_it_names(browser):
    page = opened(browser)
    page.get_by_role("link", name="Some VAE").click()
    page.wait_for_function("looked.length === 1")
    assert page.evaluate("looked") == ["Some VAE"]
    assert page.locator(".selected").inner_text() == "VAE Kit"
    assert page.faults == []
