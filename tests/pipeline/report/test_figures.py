from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from paredown.pipeline.report.figures import (
    SCORES,
    TAGS,
    VARIANTS,
    Figure,
    caption,
    figures_table,
    read_figures,
    write_figures,
)
from paredown.targets.errors import InputError
from paredown.targets.host.host import Machine

HOST = Machine("host", "AMD EPYC", 2, "x86_64", "Linux", 24000, "3.11.7", (("torch", "2.13.0"),))
BOARD = Machine("raspberry-pi-5", "Cortex-A76", 4, "aarch64", "Linux", 2048, "3.11.7")


def figure(variant="fp32", metric="map50", value=0.5, unit="1", tag="measured", where=HOST, stage="score"):
    return Figure(stage, variant, metric, value, unit, tag, where)


def rendered(figures, width=100):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(figures_table(figures))
    for line in caption(figures):
        console.print(line, markup=False)
    return console.file.getvalue()


def test_written_figures_read_back_in_a_stable_order(tmp_path):
    figures = [
        figure("litert", "latency_p50", 5.7, "ms"),
        figure("fp32"),
        figure("integer", "parity_lsb", 1, "LSB"),
        figure("fp32", "latency_p50", 3.0, "ms", "predicted", BOARD),
    ]
    write_figures(tmp_path / "figures.json", figures)
    first = (tmp_path / "figures.json").read_bytes()
    write_figures(tmp_path / "figures.json", reversed(figures))
    assert (tmp_path / "figures.json").read_bytes() == first
    back = read_figures(tmp_path / "figures.json")
    assert set(map(str, back)) == set(map(str, figures))
    assert [f.variant for f in back] == ["fp32", "fp32", "integer", "litert"]
    plain = json.loads(first)
    assert set(plain[0]) == {"stage", "variant", "metric", "value", "unit", "tag", "where"}
    assert plain[-1]["where"]["versions"] == {"torch": "2.13.0"}


@pytest.mark.parametrize("value", [math.nan, math.inf, True, "1", None])
def test_a_value_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="map50"):
        figure(value=value)


def test_an_emulated_millisecond_is_refused():
    with pytest.raises(ValueError, match="emulated millisecond"):
        figure(metric="latency_p50", unit="ms", tag="simulated")
    assert figure(metric="instructions", unit="1", value=3230000, tag="simulated")
    with pytest.raises(ValueError, match="unknown tag"):
        figure(tag="guessed")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not JSON"),
        (b"{}", "not a list"),
        (b"[1]", "figure 1 does not have"),
        (b"[" * 100000, "not JSON"),
        (b"\xff", "not JSON"),
        (b'[{"stage": "x"}]', "figure 1 does not have"),
    ],
)
def test_broken_files_say_so_in_one_line(tmp_path, content, expected):
    (tmp_path / "figures.json").write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_figures(tmp_path / "figures.json")


@pytest.mark.parametrize(
    "change", [{"value": None}, {"tag": "x"}, {"tag": []}, {"where": "here"}, {"where": {}}, {"stage": 3}]
)
def test_a_broken_figure_is_numbered(tmp_path, change):
    good = figure().to_dict()
    (tmp_path / "figures.json").write_text(json.dumps([good, {**good, **change}]))
    with pytest.raises(InputError, match="figure 2"):
        read_figures(tmp_path / "figures.json")


def test_missing_figures_and_an_unwritable_folder(tmp_path):
    with pytest.raises(InputError, match="no figures here; run the recipe first"):
        read_figures(tmp_path / "figures.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        write_figures(tmp_path / "file" / "figures.json", [figure()])


@pytest.mark.parametrize("megabytes", [63, 203])  # float32 tiny-yolov2-voc, yolov2-voc
def test_the_table_fits_80_columns_at_its_widest(megabytes):
    size = megabytes * 1_000_000 + 4_260
    figures = []
    for variant in VARIANTS:
        for metric in SCORES[:2]:
            figures.append(figure(variant, metric, 0.8312, tag="smoke"))
        figures.append(figure(variant, "parity_lsb", 127, "LSB", "smoke"))
        for metric in ("file_bytes", "bundle_bytes"):
            figures.append(figure(variant, metric, size, "B", "smoke"))
        for metric in ("latency_p50", "latency_p90"):
            figures.append(figure(variant, metric, 98765.4321, "ms", "smoke"))
    text = rendered(figures, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text and "..." not in text
    shown = f"{size / 1024**2:,.1f}!"
    assert text.count(f" {shown} ") == 2 * len(VARIANTS)
    rows = [line.split() for line in text.splitlines() if shown in line]
    assert [row[0] for row in rows] == list(VARIANTS)
    assert rows[0][1:] == ["0.8312!", "0.8312!", "127!", shown, shown, "98765!", "98765!"]


def test_every_tag_shows_and_the_machine_is_named():
    text = rendered(
        [
            figure(value=0.75),
            figure("integer", value=0.74, tag="smoke"),
            figure("litert", "latency_p50", 5.7, "ms", "predicted", BOARD),
            figure("litert", "file_bytes", 2048, "B", "simulated"),
        ]
    )
    assert "0.7500 " in text and "0.7400!" in text and "5.70p" in text and "2.0s" in text
    words = " ".join(text.split())
    assert "no mark: measured" in words and "p: predicted" in words and "!: smoke run" in words
    assert "AMD EPYC" in words and "torch 2.13.0" in words and "raspberry-pi-5: Cortex-A76, 4 cores" in words


def test_an_empty_table_says_so():
    assert "no figures" in " ".join(rendered([]).split())


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            figure,
            variant=st.sampled_from([*VARIANTS, "x[red]y"]),
            metric=st.sampled_from([*SCORES, "parity_lsb", "file_bytes", "latency_p50", "macs"]),
            value=st.floats(0, 1e6) | st.integers(0, 10**9),
            unit=st.sampled_from(["1", "B"]),
            tag=st.sampled_from(TAGS),
            where=st.sampled_from([HOST, BOARD]),
        ),
        max_size=12,
    )
)
def test_any_figures_survive_the_file_and_render(tmp_path_factory, figures):
    path = tmp_path_factory.mktemp("figures") / "figures.json"
    write_figures(path, figures)
    assert sorted(map(str, read_figures(path))) == sorted(map(str, figures))
    assert isinstance(rendered(figures), str)
