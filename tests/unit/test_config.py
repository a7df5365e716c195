"""Loading, merging and checking configurations."""

import json
from pathlib import Path

import pytest
from refusals import MODEL, problems, run_text

from megatron_ko.config import ModelConfig, RunConfig, check_world, dump, load_config, load_model_config, run_schema

ROOT = Path(__file__).parents[2]

RUN = run_text("{from: model.yaml, tie_embeddings: true}")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    (tmp_path / "model.yaml").write_text(MODEL)
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def test_from_defaults_and_paths(run_file: Path) -> None:
    config = load_config(run_file)
    assert (config.model.num_layers, config.model.tie_embeddings) == (4, True)
    assert config.data.sources[0].prefix == run_file.parent / "shards/a"
    assert config.run.dir == run_file.parent / "out"
    assert config.optim.min_lr_ratio == 0.1


def test_extends_is_overlaid_by_the_child(run_file: Path) -> None:
    child = run_file.parent / "sub" / "child.yaml"
    child.parent.mkdir()
    child.write_text("extends: ../run.yaml\noptim: {lr: 1.0e-3, weight_decay: 0}\n")
    config = load_config(child)
    assert (config.optim.lr, config.optim.weight_decay, config.training.steps) == (1e-3, 0, 10)
    assert config.data.tokenizer == run_file.parent / "tok"


def test_later_parents_win(run_file: Path) -> None:
    (run_file.parent / "fast.yaml").write_text("training: {steps: 3}\n")
    child = run_file.parent / "child.yaml"
    child.write_text("extends: [run.yaml, fast.yaml]\n")
    assert load_config(child).training.steps == 3


def test_circle_of_files_is_told(run_file: Path) -> None:
    run_file.write_text("extends: run.yaml\n" + RUN)
    assert "circle" in problems(run_file)


def test_overrides_are_yaml_and_relative_to_here(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = run_file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = load_config(run_file, ["run.dir=here", "data.split=[9, 1, 0]", "optim.lr=1e-5"])
    assert (config.run.dir, config.data.split, config.optim.lr) == (elsewhere / "here", (9, 1, 0), 1e-5)


def test_dump_reads_back_equal(run_file: Path) -> None:
    config = load_config(run_file)
    copy = run_file.parent / "resolved.yaml"
    copy.write_text(dump(config))
    assert load_config(copy) == config


def test_all_problems_at_once_with_nearest_name(run_file: Path) -> None:
    text = problems(run_file, "model.num_layrs=3", "training.steps=ten", "optim.lr=-1", "traning.steps=3")
    assert text.startswith("4 problems")
    for part in ("did you mean 'model.num_layers'?", "training.steps", "'ten'", "optim.lr", "did you mean 'training'?"):
        assert part in text


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("parallel.tensor=3", "one of [1, 2, 4]"),
        ("model.num_attention_heads=5", "a divisor of hidden_size 64"),
        ("model.num_query_groups=3", "one of [1, 2, 4]"),
        ("parallel.pipeline=3", "parallel.pipeline one of [2, 4]"),
        ("parallel.overlap_param_gather=true", "overlap_grad_reduce"),
        ("data.sequence_length=256", "at most model.max_position_embeddings 128"),
        ("optim.warmup_steps=10", "fewer than training.steps 10"),
        ("training.micro_batch_size=3", "training.global_batch_size=6"),
        ("data.split=[100,0,0]", "eval.samples=0"),
        ("data.sources=[{prefix: a, weight: 1}, {prefix: b}]", "a weight for every source, or for none"),
        ("data.sources=[{prefix: a}, {prefix: a}]", "each prefix only once"),
        ("launch.nodes=true", "a valid integer"),
        ("training.steps=1.5", "a valid integer"),
        ("model.num_layers='4'", "a valid integer"),
        ("run.seed=-1", "greater than or equal to 0"),
        ("model", "section.key=value"),
        ("model=3", "an object"),
    ],
)
def test_each_bad_value_says_what_was_expected(run_file: Path, override: str, expected: str) -> None:
    assert expected in problems(run_file, override)


@pytest.mark.parametrize(
    "overrides",
    [
        ["parallel.virtual_pipeline=2"],
        ["parallel.first_stage_layers=1"],
        ["parallel.loss_as_layer=true"],
        ["parallel={pipeline: 2, first_stage_layers: 1, loss_as_layer: true}"],
        ["parallel.sequence_parallel=true"],
        ["parallel={tensor: 2, sequence_parallel: true}", "data.sequence_length=31"],
        ["parallel.overlap_param_gather=true"],
        ["parallel.context_exchange=p2p"],
        ["parallel={context: 2, context_exchange: p2p}", "precision.backend=portable"],
        ["model.head_dim=7"],
        ["model={family: qwen3, windows: [0, 1, 1, 1]}"],
        ["model.rope.theta=1.0"],
        ["model.rope.scaling={}"],
        ["model.rope.scaling={type: spiral}"],
        ["model.rope.scaling={type: yarn, factor: 2.0, original_max_position_embeddings: 64, mscale: 1.0}"],
        ["model.rope.scaling={type: yarn, factor: 2.0, original_max_position_embeddings: 64, beta_fast: 0.5}"],
        ["precision={dtype: fp16, initial_loss_scale: 2.0, min_loss_scale: 4.0}"],
        ["training.offload_layers=9"],
        ["training={recompute: full, offload_layers: 1}"],
        ["data.sequence_length=200"],
        ["data.split=[0, 1, 0]"],
        ["optim.warmup_steps=10"],
        ["optim={schedule: wsd, decay_steps: 11}"],
    ],
    ids=" ".join,
)
def test_every_problem_tells_what_to_do(run_file: Path, overrides: list[str]) -> None:
    told = problems(run_file, *overrides)
    assert 1 <= told.count("got:") == told.count("expected:") == told.count("remedy:")


def test_decay_longer_than_the_run(run_file: Path) -> None:
    assert "at most 8" in problems(run_file, "optim.schedule=wsd", "optim.warmup_steps=2", "optim.decay_steps=9")


def test_world_that_does_not_fit_lists_those_that_do(run_file: Path) -> None:
    config = load_config(run_file, ["parallel.tensor=2", "parallel.pipeline=2"])
    (problem,) = check_world(config, 6)
    assert "tensor 2 x pipeline 1 x data 3" in str(problem)
    assert not check_world(config, 4) and not check_world(config, 8)


def test_batch_must_divide_over_ranks(run_file: Path) -> None:
    (problem,) = check_world(load_config(run_file), 3)
    assert "global_batch_size=3 or 6" in str(problem)


def test_interleaving_needs_enough_micro_batches(run_file: Path) -> None:
    config = load_config(
        run_file, ["parallel.pipeline=2", "parallel.virtual_pipeline=2", "training.global_batch_size=3"]
    )
    (problem,) = check_world(config, 2)
    assert "interleaved" in str(problem)


def test_model_file_alone_or_in_a_run(run_file: Path) -> None:
    alone = load_model_config(run_file.parent / "model.yaml")
    within = load_model_config(run_file)
    assert alone.model_copy(update={"tie_embeddings": True}) == within


def test_padded_vocabulary() -> None:
    model = ModelConfig.model_validate(
        {
            "num_layers": 1, "hidden_size": 8, "ffn_hidden_size": 8, "num_attention_heads": 1,
            "vocab_size": 58133, "max_position_embeddings": 8,
        }
    )  # fmt: skip
    assert model.padded_vocab_size(1) == model.padded_vocab_size(8) == 58240
    assert model.padded_vocab_size(3) == 58368 and 58368 % 3 == 0


def test_sections_are_frozen(run_file: Path) -> None:
    config = load_config(run_file)
    with pytest.raises(ValueError, match="frozen"):
        config.optim.lr = 1.0  # type: ignore[misc]


def test_every_field_is_described() -> None:
    undescribed = [
        f"{name}.{key}"
        for name, section in run_schema()["$defs"].items()
        for key, field in section["properties"].items()
        if "description" not in field
    ]
    assert not undescribed


def test_schema_is_the_published_one() -> None:
    """The schema is a contract: a changed key must be seen in review. Regenerate with `megatron-ko config schema`."""
    golden = ROOT / "tests/golden/run.schema.json"
    assert json.loads(golden.read_text(encoding="utf-8")) == run_schema()


@pytest.mark.parametrize("path", sorted((ROOT / "configs/runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_runs_are_valid(path: Path) -> None:
    assert isinstance(load_config(path), RunConfig)


@pytest.mark.parametrize("path", sorted((ROOT / "configs/models").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_models_are_valid(path: Path) -> None:
    assert isinstance(load_model_config(path), ModelConfig)


@pytest.mark.parametrize("content", ["", "- a\n", "a: [1\n", "\t: x"])
def test_files_that_are_no_configuration(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert str(path) in problems(path)


def test_missing_file(tmp_path: Path) -> None:
    assert "not found" in problems(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("extends: 5\n", "names no file"),
        ("extends: [a.yaml, 5]\n", "does not exist"),
        ("model: {from: [a]}\n", "names no file"),
        ("model: {from: none.yaml}\n", "'model.from'"),
        ("? [a, b]\n: 3\n", "is no text"),
        ("optim: {? [a] : 1}\n", "is no text"),
        ("optim: &a {lr: *a}\n", "contains itself"),
        ("run: {name: " + 1000 * "[" + 1000 * "]" + "}\n", "too deep"),
        ("run: {name: " + 300 * "[" + 300 * "]" + "}\n", "contains an invalid value"),
        ('run: {name: "\\ud800"}\n', "contains an invalid value"),
    ],
)
def test_references_and_keys_that_are_none(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert expected in problems(path)


def test_a_path_below_a_file(run_file: Path) -> None:
    assert "not readable" in problems(run_file / "x.yaml")


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("training.steps=1.5", "write a whole number"),
        ("optim.lr=fast", "write a number"),
        ("run.name=5", "in quotes"),
        ("logging.tensorboard=yes", "write true or false, or leave it out for the default true"),
        ("checkpoint.keep=0", "or leave it out for the default 2"),
        ("optim.schedule=cosin", "did you mean 'cosine'?"),
        ("optim.schedule=7", "choose one of them"),
        ("data.split=5", "write a list"),
        ("data.split=[1, 1]", "all its items"),
        ("training=5", "{KEY: VALUE}"),
        ("data.sources.0.prefix=b", """data.sources='[{"prefix": "b"}]'"""),
        ("data.sources.7=b", "data.sources='[{"),
        ("model.from=other.yaml", "'model: {from: FILE}'"),
        ("extends=other.yaml", "'extends: RUN.yaml', and use"),
        ("run.dir=~no-such-user/x", "write the full path"),
    ],
)
def test_each_bad_value_says_what_to_write_instead(run_file: Path, override: str, remedy: str) -> None:
    text = problems(run_file, override)
    assert "remedy:" in text and remedy in text


def test_a_wrong_item_is_one_problem(run_file: Path) -> None:
    assert problems(run_file, "data.sources=[x]").startswith("1 problem in")


def test_names_that_look_like_dates_are_text(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_file.parent)
    config = load_config(run_file, ["run.dir=2024-01-01", "run.name=2024-01-01 10:00"])
    assert (config.run.dir, config.run.name) == (run_file.parent / "2024-01-01", "2024-01-01 10:00")
