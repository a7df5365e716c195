"""Blends: weights are what each method promises, no source is repeated too often, and a run reads what is written."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from megatron_ko.cli.data import app
from megatron_ko.config import DataConfig
from megatron_ko.config.data import Source
from megatron_ko.config.load import build, read_tree
from megatron_ko.data.tokenizer import load_tokenizer
from megatron_ko.data.tokens.blend import BlendOptions, blend, read_sources, unimax
from megatron_ko.data.training.origins import source_names
from megatron_ko.data.training.sources import check_sources
from megatron_ko.errors import DataError

SIZES = st.dictionaries(st.text(min_size=1, max_size=3), st.integers(1, 10**13), min_size=1, max_size=8)
EPOCHS = st.floats(0.01, 50)


@given(sizes=SIZES, part=st.floats(0.001, 1), temperature=st.floats(1, 50))
def test_weights_sum_to_one_and_tokens_to_the_budget(sizes: dict[str, int], part: float, temperature: float) -> None:
    budget = max(1, int(sum(sizes.values()) * part))
    for method in ("proportional", "temperature", "unimax"):
        options = BlendOptions(budget, method, temperature, max_epochs=1e15)
        shares = blend(sizes, options)
        assert [share.name for share in shares] == list(sizes)
        assert sum(share.weight for share in shares) == pytest.approx(1)
        assert sum(share.tokens for share in shares) == pytest.approx(budget)
        assert all(share.tokens == pytest.approx(share.epochs * share.available) for share in shares)


@given(sizes=SIZES, temperature=st.floats(1, 50))
def test_temperature_lies_between_proportional_and_uniform(sizes: dict[str, int], temperature: float) -> None:
    shares = blend(sizes, BlendOptions(1, "temperature", temperature, max_epochs=1e15))
    ordered = sorted(shares, key=lambda share: share.available)
    total = sum(sizes.values())
    for smaller, larger in pairwise(ordered):
        assert smaller.weight <= larger.weight * (1 + 1e-9)
        assert larger.weight / smaller.weight <= larger.available / smaller.available * (1 + 1e-6)
    if temperature == 1:
        assert all(share.weight == pytest.approx(share.available / total) for share in shares)


@given(sizes=SIZES, budget=st.integers(1, 10**14), epochs=EPOCHS)
def test_unimax_is_as_equal_as_the_caps_allow(sizes: dict[str, int], budget: int, epochs: float) -> None:
    given_tokens = unimax(sizes, budget, epochs)
    caps = {name: epochs * size for name, size in sizes.items()}
    assert sum(given_tokens.values()) == pytest.approx(min(budget, sum(caps.values())))
    assert all(given_tokens[name] <= caps[name] * (1 + 1e-9) for name in sizes)
    level = max(given_tokens.values())
    # Water filling: a source has either its cap or as much as the one that has most.
    for name in sizes:
        assert given_tokens[name] == pytest.approx(min(level, caps[name]), rel=1e-6)


def test_unimax_by_hand() -> None:
    sizes = {"web": 1000, "books": 100, "law": 10}
    assert unimax(sizes, 600, 2.0) == {"web": 380.0, "books": 200.0, "law": 20.0}
    shares = {share.name: share for share in blend(sizes, BlendOptions(600, "unimax", max_epochs=2.0))}
    assert shares["law"].epochs == 2.0 and shares["web"].epochs == pytest.approx(0.38)


@given(sizes=SIZES, epochs=EPOCHS, factor=st.floats(0.01, 3))
def test_no_source_is_repeated_too_often_without_being_told(
    sizes: dict[str, int], epochs: float, factor: float
) -> None:
    budget = max(1, int(sum(sizes.values()) * epochs * factor))
    for method in ("proportional", "temperature", "unimax"):
        options = BlendOptions(budget, method, 3.0, max_epochs=epochs)
        try:
            shares = blend(sizes, options)
        except DataError as error:
            assert "repeated too often" in error.what and "--max-epochs" in str(error)
            if method == "unimax":
                assert budget > epochs * sum(sizes.values()) * (1 - 1e-9)
        else:
            assert all(share.epochs <= epochs * (1 + 1e-6) for share in shares)


def test_weights_must_fit() -> None:
    for weights in (None, {"a": 1.0}, {"a": 1.0, "c": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "b": float("inf")}):
        with pytest.raises(DataError, match="weights do not fit"):
            blend({"a": 10, "b": 10}, BlendOptions(5, "explicit", weights=weights))
    with pytest.raises(DataError, match="no tokens"):
        blend({"a": 10, "b": 0}, BlendOptions(5))


@pytest.fixture(scope="module")
def corpora(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Callable[[str], Path], korean: Callable[..., list[str]]
) -> Path:
    folder = tmp_path_factory.mktemp("blend")
    for name, number, extra in (("web", 400, ["--shards", "2"]), ("books", 100, [])):
        text = folder / f"{name}.jsonl"
        lines = (json.dumps({"text": part}) for part in korean(number, number))
        text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        words = ["--input", str(text), "--tokenizer", str(tokenizer_folder("byte-bpe")), "--output", str(folder / name)]
        result = CliRunner().invoke(app, ["preprocess", *words, "--workers", "1", *extra])
        assert result.exit_code == 0, result.output
    return folder


def test_a_run_reads_the_file_with_the_weights_that_it_says(
    corpora: Path, tokenizer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    sources = [str(corpora / "web"), str(corpora / "books")]
    output = tmp_path / "blend.yaml"
    words = [*sources, "--tokens", "20000", "--output", str(output), "--json"]
    result = CliRunner().invoke(app, ["blend", *words, "--weights", "web=0.6", "--weights", "books=0.4"])
    assert result.exit_code == 0, result.output
    shares = {share["name"]: share for share in json.loads(result.stdout)["shares"]}
    assert shares["web"]["weight"] == pytest.approx(0.6)
    run = tmp_path / "elsewhere/run.yaml"
    run.parent.mkdir()
    tokenizer = tokenizer_folder("byte-bpe")
    run.write_text(f"data: {{from: ../blend.yaml, tokenizer: {tokenizer}, sequence_length: 16}}\n")
    data = build(DataConfig, read_tree(run)["data"], str(run))
    shards = check_sources(data, load_tokenizer(tokenizer))
    assert len(shards) == 3
    assert sum(shard.weight for shard in shards[:2]) == pytest.approx(0.6)
    assert shards[0].weight / shards[1].weight == pytest.approx(shards[0].manifest.tokens / shards[1].manifest.tokens)
    again = CliRunner().invoke(app, ["blend", *words])
    assert again.exit_code != 0 and "exists already" in str(again.exception)


def test_a_folder_of_data_can_be_moved_with_its_blend(
    corpora: Path, tokenizer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Shards below the file's folder are named relative to it, others in full."""
    data, moved = tmp_path / "data", tmp_path / "other place"
    shutil.copytree(corpora, data)
    words = [str(data / "web"), str(corpora / "books"), "--tokens", "20000", "--output", str(data / "blend.yaml")]
    result = CliRunner().invoke(app, ["blend", *words])
    assert result.exit_code == 0, result.output
    data.rename(moved)
    run = tmp_path / "run.yaml"
    tokenizer = tokenizer_folder("byte-bpe")
    run.write_text(f"data: {{from: other place/blend.yaml, tokenizer: {tokenizer}, sequence_length: 16}}\n")
    config = build(DataConfig, read_tree(run)["data"], str(run))
    assert [source.prefix.parent for source in config.sources] == [moved, moved, corpora]
    assert source_names(config.sources) == ["web", "web", "books"]
    assert len(check_sources(config, load_tokenizer(tokenizer))) == 3


def test_sources_are_called_by_their_names_or_prefixes() -> None:
    def names(*given: tuple[str, str | None]) -> list[str]:
        return source_names([Source(prefix=Path(prefix), name=name) for prefix, name in given])

    assert names(("a/web", None), ("a/law", "법")) == ["web", "법"]
    assert names(("a/web-00000-of-00002", None), ("a/web-00001-of-00002", None)) == ["web", "web"]
    assert names(("a/web", None), ("b/web-00000-of-00001", None)) == ["a/web", "b/web"]


def test_too_many_epochs_write_nothing(corpora: Path, tmp_path: Path) -> None:
    sources = [str(corpora / "web"), str(corpora / "books")]
    words = ["blend", *sources, "--tokens", "10000000", "--method", "unimax", "--output", str(tmp_path / "b.yaml")]
    refused = CliRunner().invoke(app, words)
    assert isinstance(refused.exception, DataError) and not (tmp_path / "b.yaml").exists()
    told = CliRunner().invoke(app, [*words, "--max-epochs", "10000"])
    assert told.exit_code == 0 and "| books |" in told.stdout and (tmp_path / "b.yaml").exists()


def test_duplicates_and_strange_tokenizers_are_refused(
    corpora: Path, tokenizer_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="same tokens"):
        read_sources([corpora / "web", corpora / "web"])
    words = ["--input", str(corpora / "books.jsonl"), "--tokenizer", str(tokenizer_folder("bpe"))]
    CliRunner().invoke(app, ["preprocess", *words, "--output", str(tmp_path / "other"), "--workers", "1"])
    with pytest.raises(DataError, match="different tokenizers"):
        read_sources([corpora / "web", tmp_path / "other"])


def test_stats_add_up_and_are_drawn(corpora: Path, tmp_path: Path) -> None:
    sources = [str(corpora / "web"), str(corpora / "books")]
    plot = tmp_path / "lengths.png"
    result = CliRunner().invoke(app, ["stats", *sources, "--plot", str(plot), "--json"])
    assert result.exit_code == 0, result.output
    stats = json.loads(result.stdout)
    web, books = stats["sources"]
    assert (web["documents"], web["shards"], books["documents"]) == (400, 2, 100)
    for name in ("documents", "tokens", "bytes", "shards"):
        assert stats["total"][name] == web[name] + books[name]
    for row, source in zip(stats["sources"], read_sources([corpora / "web", corpora / "books"]), strict=True):
        lengths = source.lengths()
        assert (len(lengths), int(lengths.sum())) == (row["documents"], row["tokens"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    shown = CliRunner().invoke(app, ["stats", *sources])
    assert shown.stdout.splitlines()[-1].startswith("| all | 500 |")
