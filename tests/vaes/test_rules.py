"""The user's rules: the first that matches decides, and each can say why it did or did not."""

import json

import pytest
import torch
from conftest import ROOT
from fake_host import FakeHost
from safetensors.torch import save_file

from sd_vae_kit.core.networks.autoencoder import AutoencoderKL, KlConfig, NetConfig
from sd_vae_kit.core.networks.latent_format import FORMATS
from sd_vae_kit.errors import RulesError, VaeMismatchError, VaeNotFoundError
from sd_vae_kit.vaes.choice import resolve
from sd_vae_kit.vaes.family_finder import FamilyFinder
from sd_vae_kit.vaes.guard import FamilyGuard
from sd_vae_kit.vaes.host_protocol import Checkpoint
from sd_vae_kit.vaes.library import Library
from sd_vae_kit.vaes.model_folders import Folder
from sd_vae_kit.vaes.rules import Rule, RulesFile, dump, explain, first_match, merged, parse, rules_from_cards
from sd_vae_kit.vaes.swap import Swapper

NET = NetConfig(ch=32, ch_mult=(1, 1), num_res_blocks=1)


def checkpoint(tmp_path, name="anime/Counterfeit-V3.0.safetensors [cbfba64e66]", family="sd1"):
    path = tmp_path / "models" / "Stable-diffusion" / name.rsplit(" [", 1)[0]
    return Checkpoint(name, path, FORMATS[family])


def matches(rule, loaded, run="picture"):
    return rule.failures(loaded, run) == []


@pytest.mark.parametrize(
    ("conditions", "matched"),
    [
        ({}, True),
        ({"checkpoint": "Counterfeit-V3.0.safetensors"}, True),
        ({"checkpoint": "counterfeit-v3.0"}, True),
        ({"checkpoint": "anime/Counterfeit-V3.0.safetensors"}, True),
        ({"checkpoint": "Counterfeit-V3"}, False),
        ({"checkpoint": "Counterfeit*"}, False),
        ({"glob": "counterfeit*"}, True),
        ({"glob": "anime/*"}, True),
        ({"glob": "*V2*"}, False),
        ({"family": "sd1"}, True),
        ({"family": "sdxl"}, False),
        ({"folder": "anime"}, True),
        ({"folder": "Stable-diffusion/Anime/"}, True),
        ({"folder": "nime"}, False),
        ({"folder": "anime/sub"}, False),
        ({"family": "sd1", "glob": "counter*", "folder": "anime"}, True),
        ({"family": "sdxl", "glob": "counter*"}, False),
    ],
)
def test_conditions_hold_together_and_ignore_letter_case(tmp_path, conditions, matched):
    assert matches(Rule("x", **conditions), checkpoint(tmp_path)) is matched


def test_a_model_without_a_file_lies_in_no_folder():
    demo = Checkpoint("Demo", None, FORMATS["sd1"])
    assert not matches(Rule("x", folder="anime"), demo)
    assert matches(Rule("x", checkpoint="demo"), demo)


@pytest.mark.parametrize(
    ("runs", "run", "matched"),
    [
        (None, "picture", True),
        (None, "hires", True),
        (None, "img2img encode", True),
        (None, "preview", False),
        (("preview",), "preview", True),
        (("hires", "preview"), "picture", False),
    ],
)
def test_a_rule_is_for_every_pass_but_the_preview_unless_it_says_which(tmp_path, runs, run, matched):
    rule = Rule("x") if runs is None else Rule("x", runs=runs)
    assert matches(rule, checkpoint(tmp_path), run) is matched


def test_the_first_match_decides_and_every_rule_is_explained(tmp_path):
    rules = (
        Rule("xl", family="sdxl"),
        Rule("big", glob="counter*", runs=("hires",)),
        Rule("anime", folder="anime"),
        Rule("any"),
    )
    loaded = checkpoint(tmp_path)
    assert first_match(rules, loaded, "picture") == (3, rules[2])
    assert first_match(rules, loaded, "hires") == (2, rules[1])
    assert first_match(rules, loaded, "preview") is None
    lines = explain(rules, loaded, "picture")
    assert [(line.matches, line.decides) for line in lines] == [
        (False, False),
        (False, False),
        (True, True),
        (True, False),
    ]
    assert [line.why for line in lines] == [
        "The family is SD 1.x / 2.x, not SDXL.",
        "The pass is picture, not hires.",
        "All of it holds, so the VAE is anime.",
        "All of it holds, but rule 3 came first.",
    ]


# --- the file --------------------------------------------------------------------------------------------------------


def written(*rules, **changes):
    return json.dumps({"version": 1, "rules": list(rules), **changes})


def test_rules_survive_writing_and_reading():
    rules = (
        Rule("ä.safetensors", checkpoint="a.ckpt", note="why"),
        Rule("None", glob="*x*", family="sdxl", folder="b/c", runs=("hires",)),
        Rule("Automatic", runs=("picture", "preview")),
    )
    assert parse(dump(rules)) == rules
    assert parse(dump(())) == parse("") == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON .line 1"),
        ("[]", "must be"),
        ('{"version": 1, "rules": [], "x": 1}', "nothing else"),
        ('{"version": 2, "rules": []}', "version 2"),
        (written("x"), "rule 1 is 'x'"),
        (written({"vae": "a"}, {"vea": "b"}), 'rule 2 has the unknown key "vea"; the keys are checkpoint, family'),
        (written({"family": "sd1"}), 'rule 1 names no "vae"'),
        (written({"vae": "  "}), 'names no "vae"'),
        (written({"vae": 3}), '"vae" is 3; it must be text'),
        (written({"vae": "a", "family": "sd15"}), 'family "sd15"; families are sd1, sdxl'),
        (written({"vae": "a", "pass": "hiresfix"}), '"pass" is .hiresfix.; it is one or a list of picture, hires'),
        (written({"vae": "a", "pass": []}), '"pass" is'),
        (written({"vae": "a", "pass": {}}), '"pass" is'),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_rule(text, words):
    with pytest.raises(RulesError, match=words) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_again_when_it_changed_and_a_missing_one_is_no_rules(tmp_path):
    file = RulesFile(tmp_path / "vae_rules.json")
    assert file.rules == ()
    assert parse(file.text) == ()
    file.path.write_text(written({"vae": "a"}), "utf-8")
    assert [rule.vae for rule in file.rules] == ["a"]
    file.path.write_text(written({"vae": "bb"}), "utf-8")
    assert [rule.vae for rule in file.rules] == ["bb"]
    file.path.unlink()
    assert file.rules == ()


def test_a_file_from_a_windows_editor_is_read(tmp_path):
    file = RulesFile(tmp_path / "vae_rules.json")
    file.path.write_text(written({"vae": "a"}), "utf-8-sig")
    assert [rule.vae for rule in file.rules] == ["a"]


def test_a_wrong_text_is_not_saved(tmp_path):
    file = RulesFile(tmp_path / "deep" / "vae_rules.json")
    file.save(written({"vae": "a"}))
    with pytest.raises(RulesError):
        file.save(written({"vea": "b"}))
    assert [rule.vae for rule in file.rules] == ["a"]
    assert [path.name for path in file.path.parent.iterdir()] == ["vae_rules.json"]


def test_a_file_that_became_wrong_is_an_error_not_silence(tmp_path):
    file = RulesFile(tmp_path / "vae_rules.json")
    file.save(written({"vae": "a"}))
    file.path.write_text("{", "utf-8")
    with pytest.raises(RulesError, match="not valid JSON"):
        _ = file.rules


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RulesError, match="was not saved"):
        RulesFile(tmp_path / "file" / "vae_rules.json").save(written())


def test_the_documentations_example_is_a_valid_file():
    text = (ROOT / "docs" / "rules.md").read_text("utf-8")
    example = text.split("```json\n")[1].split("```")[0]
    assert len(parse(example)) >= 4


# --- A1111's cards ---------------------------------------------------------------------------------------------------


def test_cards_beside_checkpoints_become_rules(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.safetensors", "b.ckpt", "sub/c.safetensors", "d.safetensors", "e.safetensors", "f.safetensors"):
        (tmp_path / name).write_bytes(b"")
    cards = {
        "a.json": {"vae": "x.vae.pt", "description": "..."},
        "b.json": {"vae": "Automatic"},
        "sub/c.json": {"vae": "None"},
        "d.json": {"notes": "no vae"},
        "alone.json": {"vae": "y"},
    }
    for name, card in cards.items():
        (tmp_path / name).write_text(json.dumps(card), "utf-8")
    (tmp_path / "e.json").write_bytes(b"{ broken")
    (tmp_path / "f.json").write_bytes(b"[1]")
    found = rules_from_cards(tmp_path)
    assert [(rule.checkpoint, rule.vae) for rule in found] == [("a.safetensors", "x.vae.pt"), ("c.safetensors", "None")]
    assert found[0].note == "from a.json"
    assert parse(dump(found)) == found


def test_imported_rules_do_not_replace_those_that_are_there():
    own = (Rule("mine", checkpoint="A.safetensors"), Rule("any"))
    cards = (Rule("card", checkpoint="a.safetensors"), Rule("card", checkpoint="b.safetensors"))
    assert merged(own, cards) == (*own, cards[1])


# --- in the order of DESIGN ------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    folder = tmp_path / "VAE"
    folder.mkdir()
    for number, name in enumerate(("card", "job", "set", "ruled", "hires")):
        torch.manual_seed(number)
        save_file(AutoencoderKL(KlConfig(NET, NET)).state_dict(), folder / f"{name}.safetensors")
    host = FakeHost(
        AutoencoderKL(KlConfig(NET, NET)).requires_grad_(False), checkpoint_path=tmp_path / "model.safetensors"
    )
    library = Library([Folder(folder)], tmp_path / "cache.json")
    library.refresh()
    return host, library


RULES = (Rule("hires.safetensors", runs=("hires",)), Rule("ruled.safetensors", checkpoint="model"))


@pytest.mark.parametrize(
    ("dropdown", "overrides", "card", "job", "run", "expected", "rule"),
    [
        ("Automatic", True, "card.safetensors", None, "picture", "ruled.safetensors", "rule"),
        ("Automatic", True, "card.safetensors", None, "hires", "hires.safetensors", "rule"),
        ("Automatic", True, "card.safetensors", None, "preview", "card.safetensors", "card"),
        ("Automatic", True, None, "job.safetensors", "hires", "job.safetensors", "job"),
        ("set.safetensors", True, None, None, "picture", "set.safetensors", "setting"),
        ("set.safetensors", False, "card.safetensors", None, "picture", "ruled.safetensors", "rule"),
        ("None", True, None, None, "hires", "None", "setting"),
    ],
)
def test_rules_come_between_the_jobs_override_and_the_card(world, dropdown, overrides, card, job, run, expected, rule):
    host, library = world
    host.set(sd_vae=dropdown, sd_vae_overrides_per_model_preferences=overrides)
    host.prefer(card)
    decision = resolve(host, library, job, RULES, run)
    assert (decision.name, decision.rule) == (expected, rule)


def test_the_reason_names_the_rule(world):
    host, library = world
    assert resolve(host, library, None, RULES).reason == "ruled.safetensors follows from rule 2 (checkpoint model)."
    none = resolve(host, library, None, (Rule("None", family="sd1"),))
    assert (none.entry, none.reason) == (None, "The checkpoint's own VAE: rule 1 asks for it (family sd1).")


def test_a_rule_that_says_automatic_hands_on_to_the_card(world):
    host, library = world
    host.prefer("card.safetensors")
    assert resolve(host, library, None, (Rule("Automatic"), *RULES)).rule == "card"


def test_a_rule_with_a_missing_vae_is_an_error_that_names_the_rule(world):
    host, library = world
    with pytest.raises(VaeNotFoundError, match=r"Rule 1 of vae_rules\.json \(always\): there is no VAE 'gone'"):
        resolve(host, library, None, (Rule("gone"),))


def test_the_swapper_follows_the_file(world, tmp_path):
    host, library = world
    file = RulesFile(tmp_path / "vae_rules.json")
    swapper = Swapper(host, library, rules=file)
    assert swapper.choose().name == "None"
    file.save(dump(RULES))
    assert swapper.choose().name == "ruled.safetensors"
    assert swapper.choose(run="hires").name == "hires.safetensors"
    swapper.close()


# --- the guard in a swap ---------------------------------------------------------------------------------------------


def test_a_vae_of_another_family_is_warned_of_or_refused_as_set(tmp_path):
    demo = ROOT / "sd_vae_kit" / "standalone" / "demo"
    library = Library([Folder(demo)], tmp_path / "cache.json")
    library.refresh()
    own = library.load(library.get("demo_natural.safetensors"))
    module = AutoencoderKL(own.detection.config).requires_grad_(False)
    host = FakeHost(module, family="sdxl")
    swapper = Swapper(host, library, guard=FamilyGuard(FamilyFinder(library, tmp_path / "families.json")))
    host.set(sd_vae="demo_vivid.safetensors", vae_kit_guard_wrong_family="refuse")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(VaeMismatchError, match=r"is a VAE for SD 1\.x / 2\.x .* the loaded model is SDXL.*install"):
        swapper.choose()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    host.set(vae_kit_guard_wrong_family="warn")
    assert "colours would be wrong" in swapper.choose().warnings[0]
    host.set(sd_vae="None")
    swapper.choose()
    host.set(sd_vae="demo_vivid.safetensors", vae_kit_guard_wrong_family="off")
    assert swapper.choose().warnings == ()
    swapper.close()
