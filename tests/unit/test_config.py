"""The run configuration: what is valid, and what is said of what is not."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import mpisparse as ms
from mpisparse.errors import ConfigError, DataError
from mpisparse.training.build import build_data, build_sparsifier
from mpisparse.training.config import RunConfig
from mpisparse.training.configfile import complete, differences, parse_config, read_config, to_toml, to_tree
from mpisparse.training.directory import check_same_run
from mpisparse.training.section import Duration
from mpisparse.training.study import read_study
from tests.paths import CHECKOUT

MINIMAL = """
name = "try"
data.name = "digits"
model.name = "mlp"
training = { length = "3 epochs", batch = 8 }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "run.toml"
    file.write_text(MINIMAL)
    return file


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sparsifier={name='topk',densty=1}", "sparsifier: unknown key 'densty'. Did you mean 'density'?"),
        ("sparsifier={name='topk',density=0}", "sparsifier.density: Input should be greater than 0, not 0"),
        ("sparsifier={name='topk',density=2}", "sparsifier.density: Input should be less than or equal to 1, not 2"),
        ("sparsifier={name='topk',density='1%'}", "sparsifier.density: Input should be a valid number, not '1%'"),
        ("sparsifier.name=topq", "sparsifier.name: no such name 'topq'. Did you mean 'topk'?"),
        ("sparsifier={density=0.1}", "sparsifier: the key 'name' is missing"),
        ("sparsifier={name='qsgd',bits=1}", "sparsifier.bits: Input should be greater than or equal to 2, not 1"),
        ("sparsifier={name='qsgd',bits=17}", "sparsifier.bits: Input should be less than or equal to 16, not 17"),
        ("sparsifier={name='qsgd',bucket=-1}", "sparsifier.bucket: Input should be greater than or equal to 0, not -1"),
        ("sparsifier={name='terngrad',clip=0}", "sparsifier.clip: Input should be greater than 0, not 0"),
        ("sparsifier={name='terngrad',density=0.1}", "sparsifier: unknown key 'density'"),
        ("sparsifier={name='gspar'}", "give density or variance, one of the two"),
        ("sparsifier={name='gspar',density=0.1,variance=1.0}", "give density or variance, one of the two"),
        (
            "sparsifier={name='topk',schedule={name='exponential',steps=10,start=7.0}}",
            "sparsifier.schedule.start: Input should be less than or equal to 1, not 7.0",
        ),
        ("training.batch=many", "training.batch: Input should be a valid integer, not 'many'"),
        ("training.batch='8'", "training.batch: Input should be a valid integer, not '8'"),
        ("schedule={name='steps',milestones=9}", "schedule.milestones: Input should be a list, such as [9], not 9"),
        ("training=3", "training: Input should be a table of keys, not 3"),
        ("model=4", "model: Input should be a table of keys, not 4"),
        ("training.objective='yes'", "training.objective: Input should be true or false, not 'yes'"),
        ("training.batch=true", "training.batch: Input should be a valid integer, not true"),
        ("name=3", "name: Input should be text in quotes, not 3"),
        ("training.batch=0", "training.batch: Input should be greater than 0, not 0"),
        ("training.global_batch=8", "training: give batch (of one rank) or global_batch (of all ranks)"),
        ("training.length=3", 'training.length: 3 is not a length of training: write "20 epochs" or "1000 steps"'),
        ("training.lenght='1 epoch'", "training: unknown key 'lenght'. Did you mean 'length'?"),
        ("optimizer.name=Adm", "optimizer: no optimizer 'Adm'. Did you mean 'Adam'?"),
        ("optimizer.momentun=0.9", "SGD: unknown key 'momentun'. Did you mean 'momentum'?"),
        ("data.name=mnist", "data.path: this key is missing"),
        ("seed=-1", "seed: Input should be greater than or equal to 0, not -1"),
        ("name='a/b'", "name: Input should be letters, digits, '.', '_' and '-', a letter or digit first, not 'a/b'"),
        ("optimizer.name=sgd", "optimizer: no optimizer 'sgd'. Did you mean 'SGD'? Valid names: "),
        ("optimizer.name=Adamw", "no optimizer 'Adamw'. Did you mean 'AdamW'?"),
        ("optimizer.name=adam-w", "Did you mean 'AdamW'?"),
        ("optimizer.name=LBFGS", "no run trains by LBFGS: it evaluates the loss several times per step."),
        ("optimizer.name=3", "optimizer.name: Input should be text in quotes, not 3"),
        ("sparsifier.name=Top-K", "sparsifier.name: no such name 'Top-K'. Did you mean 'topk'?"),
        ("resparsify={name='TOPK'}", "resparsify.name: no such name 'TOPK'. Did you mean 'topk'?"),
        ("resparsify={name='topk',density=2}", "resparsify.density: Input should be less than or equal to 1, not 2"),
        ("sparsifier={name='topk',schedule={name='Exp'}}", "sparsifier.schedule.name: no such name 'Exp'"),
        ("model.name=ResNet", "model.name: no such name 'ResNet'. Did you mean 'resnet'?"),
        ("data.name=CIFAR-10", "data.name: no such name 'CIFAR-10'. Did you mean 'cifar10'?"),
        ("schedule.name=Cosine", "'inverse', not 'Cosine'. Did you mean 'cosine'?"),
        ("memory.name='error feedback'", "not 'error feedback'. Did you mean 'error_feedback'?"),
        ("training.diverged='xyz'", "training.diverged: Input should be 'raise' or 'broadcast', not 'xyz'"),
        ("training.Batch=8", "training: unknown key 'Batch'. Did you mean 'batch'?"),
        ("model.hidden=256", "model.hidden: Input should be a list, such as [256], not 256"),
        ("model.hidden='a'", "model.hidden: Input should be a list, such as ['a'], not 'a'"),
        ("model.hidden={a=1}", "model.hidden: Input should be a list in brackets, not {'a': 1}"),
        ("schedule.milestones=0.5", "schedule.milestones: Input should be a list, such as [0.5], not 0.5"),
        ("data=mnist", "data: Input should be a table, such as { name = \"mnist\" }, not 'mnist'"),
        ("optimizer=SGD", "optimizer: Input should be a table, such as { name = \"SGD\" }, not 'SGD'"),
        ("asynchronous=true", "asynchronous: Input should be a table of keys, not true"),
        ("training.shuffle=1", "training.shuffle: Input should be true or false, not 1"),
        ("seed=[" + "1," * 200 + "]", "seed: Input should be a valid integer, not [1, 1, 1"),
        ("spasifier.name=topk", "top level: unknown key 'spasifier'. Did you mean 'sparsifier'?"),
        ("name.first=3", "name is a value, not a section"),
        ("nonsense", "--set 'nonsense': write section.key=value"),
        ("=3", "write section.key=value"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(path: Path, setting: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_config(path, [setting])
    assert words in str(raised.value)
    said = str(raised.value)
    assert len(said) < 1000
    assert not any(odd in said for odd in ("tuple", "dictionary", "instance of", "True", "pattern", "String"))


def test_a_study_and_a_configuration_are_told_apart(path: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.toml"
    study.write_text('[base]\nname = "x"\n[axes]\nseed = [1]\n')
    with pytest.raises(ConfigError, match=r"study\.toml is a study of many runs: make them by `mpisparse sweep "):
        read_config(study)
    with pytest.raises(ConfigError, match=r"run\.toml is the configuration of one run: train it by `mpisparse train "):
        read_study(path)
    path.write_text("name = 3\n")
    with pytest.raises(ConfigError, match="is no study: top level: unknown key 'name'"):
        read_study(path)


def test_a_file_that_is_no_toml_is_named_with_the_line(path: Path) -> None:
    for text in (MINIMAL + "x = \n", MINIMAL + "name = 'again'\n", MINIMAL + "[training]\n"):
        path.write_text(text)
        for read in (read_config, read_study):
            with pytest.raises(ConfigError, match=r"run\.toml is no TOML file: .*at line 6, column"):
                read(path)
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert read_config(path).name == "try"


def test_settings_are_toml_values_or_strings(path: Path) -> None:
    settings = ["sparsifier.name=topk", "sparsifier.density=1e-3", "optimizer.nesterov=false", "model.hidden=[3, 4]"]
    config = read_config(path, settings)
    assert config.sparsifier.name == "topk"
    assert config.sparsifier.density == 1e-3
    assert config.optimizer.options == {"nesterov": False}
    assert config.model.name == "mlp"
    assert config.model.hidden == (3, 4)
    assert config.training.length == Duration(3, "epochs")


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("{name='qsgd'}", ms.QSGD()),
        ("{name='qsgd',bits=8,bucket=0}", ms.QSGD(8, None)),
        ("{name='qsgd',bits=2,bucket=64}", ms.QSGD(2, 64)),
        ("{name='terngrad'}", ms.TernGrad()),
        ("{name='terngrad',clip=2.5}", ms.TernGrad(clip=2.5)),
    ],
)
def test_quantizers_are_what_their_sections_say(path: Path, setting: str, rule: ms.QSGD | ms.TernGrad) -> None:
    assert build_sparsifier(read_config(path, [f"sparsifier={setting}"]).sparsifier) == rule


def test_another_name_leaves_the_keys_of_the_old_one_behind(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(MINIMAL + 'sparsifier = { name = "topk", density = 0.25 }\n')
    dense = read_config(file, ["sparsifier.name=dense"])
    assert to_tree(dense)["sparsifier"] == {"name": "dense"}
    assert to_tree(read_config(file, ["sparsifier.name=gspar"]))["sparsifier"] == {"name": "gspar", "density": 0.25}
    with pytest.raises(ConfigError, match="unknown key 'density'"):
        read_config(file, ["sparsifier.name=dense", "sparsifier.density=0.5"])
    file.write_text(
        MINIMAL.replace('model.name = "mlp"', 'model = { name = "mlp", hidden = [5] }')
        + ('optimizer = { name = "SGD", lr = 0.5, momentum = 0.9 }\n')
    )
    assert to_tree(read_config(file, ["model.name=small_cnn"]))["model"] == {
        "name": "small_cnn",
        "channels": 16,
        "hidden": 64,
    }
    assert to_tree(read_config(file, ["optimizer.name=Adam"]))["optimizer"] == {"name": "Adam", "lr": 0.5}


def test_what_is_printed_reads_back_the_same(path: Path) -> None:
    config = read_config(path, ["optimizer.betas=[0.8, 0.9]", "optimizer.name=Adam"])
    again = parse_config(tomllib.loads(to_toml(config)), "printed")
    assert to_tree(again) == to_tree(config)


def test_differences_name_dotted_keys(path: Path) -> None:
    ours = to_tree(read_config(path))
    theirs = to_tree(read_config(path, ["training.batch=9", "sparsifier={name='threshold',threshold=0.5}"]))
    assert differences(ours, theirs) == {
        "training.batch": (8, 9),
        "sparsifier.name": ("dense", "threshold"),
        "sparsifier.threshold": (None, 0.5),
    }


def test_durations_count_in_epochs_and_steps() -> None:
    assert Duration(2, "epochs").steps(45) == 90
    assert Duration(2, "steps").steps(45) == 2
    assert str(Duration(1, "epochs")) == "1 epoch"


@pytest.mark.parametrize("file", sorted((CHECKOUT / "jobs").glob("*.toml")), ids=lambda file: file.stem)
def test_every_configuration_in_jobs_is_valid(file: Path) -> None:
    if "base" in tomllib.loads(file.read_text()):
        assert read_study(file).runs
    else:
        assert isinstance(read_config(file), RunConfig)


@pytest.mark.parametrize("root", [None, "elsewhere"])
def test_data_that_is_nowhere_says_where_it_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPISPARSE_DATA", raising=False)
    if root:
        monkeypatch.setenv("MPISPARSE_DATA", str(tmp_path / root))
    homes = {"mnist": "lecun", "cifar10": "kriz/cifar.html", "text": "char-rnn", "libsvm": "libsvmtools"}
    for name, home in homes.items():
        key = "train" if name == "libsvm" else "path"
        section = parse_config({**tomllib.loads(MINIMAL), "data": {"name": name, key: "no/data"}}, "configuration").data
        with pytest.raises(DataError) as caught:
            build_data(section)
        said = str(caught.value)
        places = [tmp_path / "no/data", *([tmp_path / root / "no/data"] if root else [])]
        assert f"data.{key} 'no/data' of {name} does not exist" in said
        assert said.endswith(f"Looked for {', '.join(map(str, places))}")
        assert home in said
        assert ("have MPISPARSE_DATA name" in said) == (root is None)


def test_a_tree_of_an_earlier_version_is_completed_by_defaults(path: Path) -> None:
    config = read_config(path, ["data={name='libsvm',train='a9a'}"])
    tree = to_tree(config)
    del tree["data"]["index_base"], tree["checkpoint"]
    check_same_run(path, tree, config)
    with pytest.raises(ConfigError, match=r"data\.index_base was 'auto', is 0"):
        check_same_run(path, tree, read_config(path, ["data={name='libsvm',train='a9a',index_base=0}"]))
    assert complete({"strange": 1}) == {"strange": 1}
