from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from client.phantoms import anatomy
from client.phantoms.anatomy import grow_anatomy, load_template
from client.phantoms.cases import SIZES, PhantomCase, make_case, session_count
from client.phantoms.cohort import MARK, write_cohort
from client.phantoms.profiles import KINDS, PROFILES, Kind, Profile
from client.phantoms.random_fields import Grid
from client.phantoms.scanner import mix_tissue, tissue_signals
from client.phantoms.tumour import grow_tumour, plan_tumour
from common.errors import CaseError, StateError
from common.regions import LABELS, MODALITIES

SIZE = 48
VOXEL_ML = (240 / SIZE) ** 3 / 1000


def only(kind: Kind, profile: str = "reference") -> Profile:
    return replace(PROFILES[profile], mix={kind: 1.0})


def case(profile: Profile, number: int = 1, session: int = 0, size: int = SIZE) -> PhantomCase:
    return make_case(profile, size=size, seed=3, number=number, session=session)


def cases(profile: Profile, count: int) -> Iterator[PhantomCase]:
    return (case(profile, number) for number in range(1, count + 1))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rescaled(image: NDArray[np.int16]) -> NDArray[np.float64]:
    inside = image[image > 0]
    return (image - inside.mean()) / inside.std()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda p: p.name)
def test_a_case_is_a_stripped_brats_like_quartet(profile: Profile) -> None:
    made = case(profile)
    assert tuple(made.images) == MODALITIES
    for image in made.images.values():
        assert image.shape == made.labels.shape == (SIZE, SIZE, 31)
        assert image.dtype == np.int16
        assert image.min() == 0
        brain_ml = (image > 0).sum() * VOXEL_ML
        assert 900 < brain_ml < 2000
    masks = [image > 0 for image in made.images.values()]
    assert all((mask == masks[0]).all() for mask in masks)
    assert made.labels.dtype == np.uint8
    assert not made.labels[~masks[0]].any()
    assert nibabel.aff2axcodes(made.affine) == ("L", "P", "S")


def test_the_finest_grid_has_the_affine_of_brats() -> None:
    expected = [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]]
    np.testing.assert_array_equal(Grid(240).affine(), expected)
    assert Grid(240).shape == (240, 240, 155)
    assert Grid(64).shape == (64, 64, 42)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "healthy"])
def test_volumes_are_plausible_and_labels_nested(kind: Kind) -> None:
    for made in cases(only(kind), 6):
        assert made.kind == kind
        ml = {name: (made.labels == value).sum() * VOXEL_ML for name, value in LABELS.items()}
        low, high = PROFILES["reference"].tumour_ml
        assert 0.7 * low < sum(ml.values()) < 1.1 * high
        assert ml["ED"] > 0
        core = ml["NCR"] + ml["ET"]
        assert 0.1 * sum(ml.values()) < core < 0.95 * sum(ml.values())
        if kind == "lowgrade":
            assert ml["ET"] < 0.4 * core
        else:
            assert ml["ET"] > 0.15 * core
        # From outside in: necrosis of a ring lies within the whole, away from healthy tissue.
        if kind == "gbm":
            touching = np.zeros(made.labels.shape, bool)
            necrosis = made.labels == LABELS["NCR"]
            for axis in range(3):
                for step in (-1, 1):
                    touching |= necrosis & (np.roll(made.labels, step, axis) == 0)
            assert touching.sum() < 0.5 * max(necrosis.sum(), 1)


def test_a_multifocal_tumour_has_cores_apart() -> None:
    parts = [
        ndimage.label(np.isin(made.labels, (LABELS["NCR"], LABELS["ET"])))[1]
        for made in cases(only("multifocal"), 6)
    ]
    assert max(parts) >= 2


@pytest.mark.parametrize("profile", PROFILES)
def test_tumours_can_be_seen(profile: str) -> None:
    oedema, before, after = [], [], []
    for made in cases(only("gbm", profile), 5):
        flair = rescaled(made.images["t2f"])
        oedema.append(flair[made.labels == LABELS["ED"]].mean())
        rim = made.labels == LABELS["ET"]
        before.append(rescaled(made.images["t1n"])[rim].mean())
        after.append(rescaled(made.images["t1c"])[rim].mean())
    assert np.mean(oedema) > 0.4
    assert np.mean(after) > 0.5
    assert np.mean(after) > np.mean(before) + 0.8


def test_a_healthy_brain_has_no_label() -> None:
    made = case(only("healthy"))
    assert made.kind == "healthy"
    assert not made.labels.any()
    kinds = {case(PROFILES["1.5t-screening"], n, size=SIZES[0]).kind for n in range(1, 11)}
    assert "healthy" in kinds
    kinds = {case(PROFILES["reference"], n, size=SIZES[0]).kind for n in range(1, 11)}
    assert "healthy" not in kinds


def test_the_mix_is_kept_in_small_cohorts() -> None:
    profile = replace(PROFILES["reference"], mix={"gbm": 0.5, "lowgrade": 0.25, "healthy": 0.25})
    kinds = [case(profile, n, size=SIZES[0]).kind for n in range(1, 21)]
    assert abs(kinds.count("gbm") - 10) <= 1
    assert abs(kinds.count("lowgrade") - 5) <= 1
    assert abs(kinds.count("healthy") - 5) <= 1


def test_profiles_differ_in_contrast_noise_and_slices() -> None:
    def contrast(name: str, modality: str, first: str, second: str) -> float:
        profile = PROFILES[name]
        timing = {"t1n": profile.t1, "t1c": profile.t1, "t2f": profile.flair}[modality]
        signals = tissue_signals(profile, modality, timing)
        return signals[first] / signals[second]

    # Inversion recovery separates grey from white more than a spin echo does.
    assert contrast("reference", "t1n", "gm", "wm") < contrast("1.5t-community", "t1n", "gm", "wm")
    # A short inversion time leaves cerebrospinal fluid bright.
    assert contrast("reference", "t2f", "csf", "wm") < contrast(
        "1.5t-screening", "t2f", "csf", "wm"
    )
    assert contrast("reference", "t1c", "et", "wm") > contrast("1.5t-screening", "t1c", "et", "wm")
    same_patient = [replace(p, name="one", mix={"gbm": 1.0}) for p in PROFILES.values()]
    images = [rescaled(case(profile).images["t2f"]) for profile in same_patient]
    for index, image in enumerate(images):
        for other in images[:index]:
            inside = (image > image.min()) & (other > other.min())
            assert np.abs(image - other)[inside].mean() > 0.15


@pytest.mark.parametrize("field_t", [1.5, 3.0])
def test_signals_follow_the_physics(field_t: float) -> None:
    profile = replace(PROFILES["reference"], field_t=field_t)
    t1 = tissue_signals(profile, "t1n", PROFILES["1.5t-community"].t1)
    assert t1["csf"] < t1["gm"] < t1["wm"] == 1
    t2 = tissue_signals(profile, "t2w", profile.t2)
    assert t2["wm"] < t2["gm"] < t2["ed"] < t2["csf"]
    flair = tissue_signals(profile, "t2f", profile.flair)
    assert flair["csf"] < flair["wm"] < flair["gm"] < flair["ed"]


def test_the_same_arguments_give_the_same_case() -> None:
    first, second = case(PROFILES["3t-research"]), case(PROFILES["3t-research"])
    np.testing.assert_array_equal(first.labels, second.labels)
    for name in MODALITIES:
        np.testing.assert_array_equal(first.images[name], second.images[name])


@pytest.mark.parametrize(
    "other", [{"seed": 4}, {"site": 1}, {"number": 2}, {"session": 1}], ids=lambda o: next(iter(o))
)
def test_each_argument_gives_another_case(other: dict[str, int]) -> None:
    arguments = {"seed": 3, "site": 0, "number": 1, "session": 0}
    profile = PROFILES["reference"]
    first = make_case(profile, size=SIZE, **arguments)
    second = make_case(profile, size=SIZE, **{**arguments, **other})
    assert (first.images["t1n"] != second.images["t1n"]).any()
    assert (first.labels != second.labels).any()


def test_hospitals_share_no_patient() -> None:
    scanner = PROFILES["reference"]
    first, second = case(scanner), case(replace(scanner, name="elsewhere"))
    assert (first.labels != second.labels).any()


def test_two_time_points_share_the_anatomy() -> None:
    profile = only("gbm")
    for number in (1, 2, 3):
        first, second, stranger = case(profile, number), case(profile, number, 1), case(profile, 9)
        masks = [made.images["t1n"] > 0 for made in (first, second, stranger)]
        assert (masks[0] == masks[1]).mean() > 0.97

        def agreement(one: PhantomCase, two: PhantomCase) -> float:
            a, b = one.images["t1n"], two.images["t1n"]
            healthy = (a > 0) & (b > 0) & (one.labels == 0) & (two.labels == 0)
            return float(np.corrcoef(a[healthy], b[healthy])[0, 1])

        assert agreement(first, second) > agreement(first, stranger) + 0.15
        overlap = ((first.labels > 0) & (second.labels > 0)).sum()
        smaller = min((first.labels > 0).sum(), (second.labels > 0).sum())
        assert overlap > 0.9 * smaller


def test_size_out_of_range_is_refused() -> None:
    for size in (SIZES[0] - 1, SIZES[1] + 1):
        with pytest.raises(CaseError, match="size") as caught:
            case(PROFILES["reference"], size=size)
        assert caught.value.code == "phantom-size"


def test_a_missing_template_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "find_spec", lambda _: None)
    anatomy._load.cache_clear()
    with pytest.raises(StateError, match="site extra") as caught:
        load_template(3.0)
    assert caught.value.code == "phantom-template"


def test_fractions_never_exceed_a_voxel() -> None:
    grid, rng = Grid(SIZE), np.random.default_rng(5)
    template = load_template(grid.spacing_mm)
    for kind in KINDS:
        plan = plan_tumour(PROFILES["reference"], kind, template, rng)
        push = plan.push if plan else None
        body = grow_anatomy(template, grid, rng, age=0.5, push=push)
        total = sum(body.tissue.values())
        assert np.max(total) < 1 + 1e-4
        grown = grow_tumour(plan, body, grid, rng).tissue if plan else {}
        mixed = mix_tissue(body, grown, grid, rng)
        assert all(np.min(values) >= -1e-4 for values in mixed.values())
        assert np.max(sum(mixed.values())) < 1 + 1e-3


def test_a_cohort_does_not_depend_on_order_or_workers(tmp_path: Path) -> None:
    profile, seen = PROFILES["3t-lowgrade"], []
    paths = write_cohort(
        tmp_path / "all",
        profile,
        patients=3,
        size=SIZES[0],
        seed=1,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n + 1, len(paths)) for n in range(len(paths))]
    write_cohort(tmp_path / "grown", profile, patients=1, size=SIZES[0], seed=1)
    write_cohort(tmp_path / "grown", profile, patients=3, size=SIZES[0], seed=1, workers=2)
    assert contents(tmp_path / "all") == contents(tmp_path / "grown")
    alone = make_case(profile, size=SIZES[0], seed=1, number=3)
    path = tmp_path / "all" / "BraTS-PHA-00003-000" / "BraTS-PHA-00003-000-t2w.nii.gz"
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj), alone.images["t2w"])


def test_brats_2023_names_patients_and_time_points(tmp_path: Path) -> None:
    profile = replace(PROFILES["reference"], follow_up=0.5)
    counts = [session_count(profile, seed=0, number=n) for n in range(1, 7)]
    assert set(counts) == {1, 2}
    paths = write_cohort(tmp_path, profile, patients=6, size=SIZES[0])
    expected = [
        f"BraTS-PHA-{n:05d}-{s:03d}" for n, count in enumerate(counts, 1) for s in range(count)
    ]
    assert [path.name for path in paths] == expected
    for path in paths:
        names = {f"{path.name}-{word}.nii.gz" for word in (*MODALITIES, "seg")}
        assert {file.name for file in path.iterdir()} == names
    image = nibabel.load(paths[0] / f"{paths[0].name}-t1c.nii.gz")
    assert image.get_data_dtype() == np.int16
    assert int(image.header["qform_code"]) == int(image.header["sform_code"]) == 1
    labels = nibabel.load(paths[0] / f"{paths[0].name}-seg.nii.gz")
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_allclose(labels.affine, image.affine)


def test_brats_2020_has_its_own_names_and_codes(tmp_path: Path) -> None:
    profile = replace(PROFILES["reference"], mix={"gbm": 1.0}, follow_up=1.0)
    paths = write_cohort(tmp_path, profile, patients=2, size=32, layout="brats2020")
    assert [path.name for path in paths] == ["BraTS20_Phantom_001", "BraTS20_Phantom_002"]
    words = ("t1", "t1ce", "t2", "flair", "seg")
    for path in paths:
        names = {f"{path.name}_{word}.nii.gz" for word in words}
        assert {file.name for file in path.iterdir()} == names
        labels = np.asanyarray(nibabel.load(path / f"{path.name}_seg.nii.gz").dataobj)
        assert set(np.unique(labels)) == {0, 1, 2, 4}


def test_the_mark_says_that_nobody_was_scanned(tmp_path: Path) -> None:
    write_cohort(tmp_path, PROFILES["1.5t-community"], patients=1, size=SIZES[0], seed=7, site=2)
    mark = json.loads((tmp_path / MARK).read_text())
    assert mark["synthetic"] is True
    assert (mark["seed"], mark["site"], mark["size"]) == (7, 2, SIZES[0])
    assert mark["profile"]["name"] == "1.5t-community"
    assert mark["profile"]["flair"]["ti_ms"] == PROFILES["1.5t-community"].flair.ti_ms


def test_phantoms_never_join_other_data(tmp_path: Path) -> None:
    profile = PROFILES["reference"]
    write_cohort(tmp_path / "a", profile, patients=2, size=SIZES[0])
    for change in ({"seed": 1}, {"patients": 1}, {"layout": "brats2020"}, {"size": 32}):
        with pytest.raises(StateError) as caught:
            write_cohort(tmp_path / "a", profile, **{"patients": 2, "size": SIZES[0], **change})
        assert caught.value.code == "phantom-settings"
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "patient.nii.gz").touch()
    with pytest.raises(StateError) as caught:
        write_cohort(tmp_path / "b", profile, patients=1, size=SIZES[0])
    assert caught.value.code == "phantom-folder"
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["patient.nii.gz"]


def test_importing_is_cheap_and_silent() -> None:
    script = (
        "import sys; from client.phantoms.cases import make_case; "
        "from client.phantoms.profiles import PROFILES; "
        "make_case(PROFILES['reference'], size=24, seed=0, number=1); "
        "print(sorted({'torch', 'nilearn', 'sklearn', 'monai'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
