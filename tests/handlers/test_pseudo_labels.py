"""Pseudo labels during training: written, renewed, resumed."""

from functools import partial

import pytest
import torch
from ignite.engine import Engine, Events

from proda.data.label_store import Manifest, open_store, read_manifest
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.labelling import Averaging, missing_labels, write_pseudo_labels
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.pseudo_labels import PseudoLabels
from proda.utils.errors import UserError
from tests import tiny
from tests.tiny import FULL, PRECISION, K

NAMES = ["a", "b", "c"]
CLASSES = [f"class {k}" for k in range(K)]
PICTURES = torch.randint(0, 256, (3, 3, *FULL), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TRUTH = torch.randint(0, K, (3, *FULL), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Images:
    """Batches of one image by name; records the requested names."""

    def __init__(self, *, labelled: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.labelled = labelled

    def __call__(self, names: list[str]) -> list[dict]:
        self.asked.append(list(names))
        batches = []
        for i in map(NAMES.index, names):
            batch = {"image": PICTURES[i : i + 1], "name": [NAMES[i]]}
            batches.append(batch | ({"labels": TRUTH[i : i + 1]} if self.labelled else {}))
        return batches


def soft_store(folder, weights="w", names=NAMES):
    return open_store(folder, "soft", Manifest(K, weights, {}, names))


class Batches:
    """The batches of a run; records the iterations from which the loader was restarted."""

    def __init__(self) -> None:
        self.restarts: list[int] = []

    def loader(self, start: int) -> list[str]:
        self.restarts.append(start)
        return [f"from {start}"] * 2


def labels_of(store, images=None) -> PseudoLabels:
    """Written by a network of seed 0 at the start."""
    return PseudoLabels(store, tiny.network(), images or Images(), PRECISION, CLASSES)


def run(
    handler: PseudoLabels,
    *,
    iterations: int,
    start: int = 0,
    every: int = 0,
    student=None,
    batches: Batches | None = None,
    folder=None,
    checkpoint_every: int = 0,
    step=lambda *_: {},
) -> Engine:
    """A run with epochs of two iterations; the newest two checkpoints are kept, none for 0."""
    engine = Trainer(step)
    if start:
        engine.load_state_dict({"epoch_length": 2, "max_iters": iterations, "iteration": start})
    folder = folder or handler.store.folder
    handler.attach(engine, every, labeller=student, batches=batches or Batches(), folder=folder)
    saved: list[int] = []

    @engine.on(Events.ITERATION_COMPLETED)
    def save() -> None:
        if checkpoint_every and engine.state.iteration % checkpoint_every == 0:
            saved.append(engine.state.iteration)
            engine.state.checkpoint_iterations = saved[-2:]

    engine.run(["from 0"] * 2, max_iters=iterations, epoch_length=2)
    return engine


to_size = partial(torch.nn.functional.interpolate, mode="bilinear", align_corners=True)


@pytest.mark.parametrize("flip", [False, True])
def test_soft_labels_are_the_probabilities_at_network_resolution(tmp_path, flip):
    network, store = tiny.network().train(), soft_store(tmp_path)
    network.bn1.eval()
    assert write_pseudo_labels(store, network, Images()(NAMES), PRECISION, class_names=CLASSES, flip=flip) == {}
    assert network.training and not network.bn1.training  # the modes that it had
    images = PICTURES.float() / 255
    expected = network.eval()(images).logits.softmax(1)
    if flip:
        expected = (expected + network(images.flip(-1)).logits.softmax(1).flip(-1)) / 2
    for name, probabilities in zip(NAMES, expected, strict=True):
        torch.testing.assert_close(store.read(name), probabilities, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("flip", "scales", "several"), [(False, (1.0,), 0), (True, (1.0,), 0), (True, (0.5, 1.0), 1)])
def test_hard_labels_are_averaged_over_mirror_images_scales_and_networks(tmp_path, flip, scales, several):
    first, others = tiny.network(seed=1).eval(), [tiny.network(seed=2).eval()] * several
    averaging = Averaging(flip=flip, scales=scales, ensemble=others)
    store = open_store(tmp_path, "hard", Manifest(K, "w", averaging.settings(), NAMES))
    write_pseudo_labels(store, first, Images()(NAMES), PRECISION, class_names=CLASSES, **averaging._asdict())
    found, image = [], PICTURES[:1].float() / 255
    for network in (first, *others):
        for scale in scales:
            view = to_size(image, size=[round(scale * side) for side in FULL])
            found.append(to_size(network(view).logits.softmax(1), size=FULL))
            if flip:
                found.append(to_size(network(view.flip(-1)).logits.softmax(1), size=FULL).flip(-1))
    labels, confidence = store.read("a")
    expected = torch.stack(found).mean(0)[0]
    assert (labels == expected.argmax(0)).float().mean() > 0.999  # except for ties in the last bit
    torch.testing.assert_close(confidence, expected.amax(0), atol=5.1e-3, rtol=0)


def test_manifests_mention_scales_and_networks_only_if_there_are_several():
    other = tiny.network()
    other.origin = "abc"
    assert Averaging(flip=True).settings() == Averaging(flip=True, scales=[1.0]).settings() == {"flip": True}
    found = Averaging(scales=(0.5, 1.0), ensemble=[other]).settings()
    assert found == {"flip": False, "scales": (0.5, 1.0), "ensemble": ["abc"]}


def test_scores_against_ground_truth_are_those_of_the_predictions(tmp_path):
    network = tiny.network()
    scores = write_pseudo_labels(
        soft_store(tmp_path), network, Images(labelled=True)(NAMES), PRECISION, class_names=CLASSES
    )
    logits = network.eval()(PICTURES.float() / 255).logits.softmax(1)
    predicted = torch.nn.functional.interpolate(logits, FULL, mode="bilinear", align_corners=True).argmax(1)
    assert scores["overall_accuracy"] == pytest.approx((predicted == TRUTH).double().mean().item(), abs=1e-3)
    assert set(scores["iou"]) == set(CLASSES)


def test_an_incomplete_set_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="1 of 3 pseudo labels are not written, first 'c'"):
        write_pseudo_labels(soft_store(tmp_path), tiny.network(), Images()(["a", "b"]), PRECISION, class_names=CLASSES)


def test_labels_are_prepared_when_training_starts_and_only_the_missing_ones(tmp_path):
    store, images, network = soft_store(tmp_path), Images(labelled=True), tiny.network()
    handler = PseudoLabels(store, network, images, PRECISION, CLASSES)
    seen = []
    engine = Trainer(lambda *_: seen.append("step"))
    engine.add_event_handler(
        ProdaEvents.PSEUDO_LABELS_REFRESHED, lambda e: seen.append(e.state.pseudo_label_scores["miou"])
    )
    handler.attach(engine)
    engine.run([None])
    assert seen[1:] == ["step"] and 0 <= seen[0] <= 1
    assert images.asked == [NAMES]

    (tmp_path / "probabilities" / "b.probs").unlink()
    run(labels_of(store, images), iterations=1)
    assert images.asked == [NAMES, ["b"]]
    run(labels_of(store, images), iterations=1)
    assert len(images.asked) == 2 and missing_labels(store, NAMES) == []


def test_the_student_renews_them_every_so_many_epochs_but_not_after_the_last(tmp_path, monkeypatch):
    store, images, batches, read, ahead = soft_store(tmp_path), Images(), Batches(), [], []
    monkeypatch.setattr(
        "proda.handlers.pseudo_labels.prefetched", lambda batches, device: ahead.append(device) or batches
    )
    student = tiny.network(1)
    run(
        labels_of(store, images),
        iterations=8,
        every=2,
        student=student,
        batches=batches,
        step=lambda _, batch: read.append((batch, store.folder.name)),
    )
    assert read == [("from 0", tmp_path.name)] * 4 + [("from 4", "iteration_4")] * 4
    assert batches.restarts == [4] and images.asked == [NAMES, NAMES]
    assert ahead == [PRECISION.device]  # the batches after the renewal are copied ahead like those before
    expected = student.eval()(PICTURES[:1].float() / 255).logits.softmax(1)
    torch.testing.assert_close(store.read("a"), expected[0], atol=2e-3, rtol=0)


def test_renewed_labels_are_those_of_their_student_in_the_runs_own_folder(tmp_path):
    manifests, labels = [], []
    for seed in (1, 2):
        store = soft_store(tmp_path / "shared")
        run(labels_of(store), iterations=3, every=1, student=tiny.network(seed), folder=tmp_path / "own")
        assert store.folder == tmp_path / "own" / "pseudo_labels" / "iteration_2"
        manifests.append(read_manifest(store.folder, "soft"))
        labels.append(store.read("a"))
    assert manifests[0].settings == manifests[1].settings == {"renewed_at_iteration": 2}
    assert len({*(manifest.weights for manifest in manifests), "w"}) == 3  # checksums of the students
    assert (labels[0] - labels[1]).abs().max() > 0.01
    assert sorted(p.name for p in (tmp_path / "shared").iterdir()) == ["manifest.json", "probabilities"]


@pytest.mark.parametrize("start", [2, 3])
def test_a_resumed_run_finds_the_labels_it_had(tmp_path, start):
    store, student = soft_store(tmp_path), tiny.network(1)
    handler = labels_of(store)
    run(handler, iterations=3, every=1, student=student)
    expected = store.read("a")

    store, images, folders = soft_store(tmp_path), Images(), []
    resumed = labels_of(store, images)
    if start == 3:  # between renewals the student has changed; the checkpoint records the labels in use
        resumed.load_state_dict(handler.state_dict())
        with torch.no_grad():
            student.conv1.weight.add_(1.0)
    step = lambda *_: folders.append(store.folder.name)  # noqa: E731
    run(resumed, iterations=4, start=start, every=1, student=student, step=step, folder=tmp_path)
    assert set(folders) == {"iteration_2"} and images.asked == []
    assert torch.equal(store.read("a"), expected)


def test_lost_labels_of_an_earlier_student_end_the_run_and_no_later_student_replaces_them(tmp_path):
    store, student = soft_store(tmp_path), tiny.network(1)
    handler = labels_of(store)
    run(handler, iterations=3, every=1, student=student)
    (store.folder / "probabilities" / "b.probs").unlink()
    resumed = labels_of(soft_store(tmp_path))
    resumed.load_state_dict(handler.state_dict())
    with pytest.raises(UserError, match="1 pseudo labels of iteration 2 are missing, and the networks of iteration 3"):
        run(resumed, iterations=4, start=3, every=1, student=student)


def test_renewal_switched_on_in_the_middle_waits_for_its_epoch(tmp_path):
    store, folders = soft_store(tmp_path), []
    step = lambda *_: folders.append(store.folder.name)  # noqa: E731
    run(labels_of(store), iterations=5, start=3, every=1, student=tiny.network(1), step=step)
    assert folders == [tmp_path.name, "iteration_4"]


def renewed_folders(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "pseudo_labels").iterdir()}


@pytest.mark.parametrize(("checkpoint_every", "kept"), [(1, {6, 8}), (3, {2, 4, 6, 8})])
def test_renewed_labels_that_no_checkpoint_needs_are_deleted(tmp_path, checkpoint_every, kept):
    """Labels are renewed every second iteration; two checkpoints are kept.

    At the renewal of iteration 8, checkpoints 7 and 8, or 3 and 6, exist. Those of 7 and 8 were saved while training on
    the labels of 6, that of 3 on the labels of 2.
    """
    handler = labels_of(soft_store(tmp_path / "first"))
    (tmp_path / "pseudo_labels" / "iteration_of_mine").mkdir(parents=True)
    run(handler, iterations=9, every=1, student=tiny.network(1), folder=tmp_path, checkpoint_every=checkpoint_every)
    assert renewed_folders(tmp_path) == {"iteration_of_mine", *(f"iteration_{i}" for i in kept)}
    assert (tmp_path / "first" / "manifest.json").exists()


def checkpointed(tmp_path, epochs: int, *, every: int, images=None, resumed_at: int = 0, listen=None) -> Trainer:
    """A run with real checkpoints whose student renews the labels after each epoch of two iterations."""
    engine, checkpoints, folder = Trainer(lambda *_: {}), Checkpoints(tmp_path / "run"), tmp_path / "run"
    handler = labels_of(soft_store(tmp_path / "first"), images)
    handler.attach(engine, 1, labeller=tiny.network(1), batches=Batches(), folder=folder)
    checkpoints.attach(engine, every=every)
    if resumed_at:
        assert checkpoints.resume(engine) == resumed_at
        engine.state.max_iters = None
    if listen:
        engine.add_event_handler(ProdaEvents.PSEUDO_LABELS_REFRESHED(once=resumed_at), listen)
    engine.run(["from 0"] * 2, max_epochs=epochs, epoch_length=2)
    return engine


def test_a_resumed_run_keeps_the_labels_of_the_checkpoint_before_the_newest(tmp_path):
    """Should the newest prove damaged later, the run continues from the one before it."""
    assert checkpointed(tmp_path, 3, every=3).state.checkpoint_iterations == [4, 6]  # 4 before its renewal
    seen = []
    checkpointed(tmp_path, 4, every=3, resumed_at=6, listen=lambda: seen.append(renewed_folders(tmp_path / "run")))
    # with the labels of 2, on which the run trained at iteration 4
    assert seen == [{"iteration_2", "iteration_4", "iteration_6"}]


def test_the_iteration_is_saved_before_new_labels_are_written_but_not_again_by_a_resume(tmp_path):
    """Writing labels takes long: a process that is killed meanwhile would lose all since the last checkpoint."""

    def killed(_names: list[str]) -> list[dict]:
        raise KeyboardInterrupt

    labels_of(soft_store(tmp_path / "first")).prepare(Trainer(lambda *_: {}))  # so that only renewals write
    with pytest.raises(KeyboardInterrupt):
        checkpointed(tmp_path, 2, every=100, images=killed)
    file, times = tmp_path / "run" / "checkpoint_2.pt", []
    before = file.stat().st_mtime_ns
    checkpointed(tmp_path, 2, every=100, resumed_at=2, listen=lambda: times.append(file.stat().st_mtime_ns))
    assert times == [before]
    assert (tmp_path / "run" / "pseudo_labels" / "iteration_2" / "manifest.json").exists()


def test_a_resume_from_each_kept_checkpoint_finds_its_labels(tmp_path):
    """Without the labels that were in use at its checkpoint, a resumed run would end with an error."""
    student, states = tiny.network(1), {}
    handler = labels_of(soft_store(tmp_path / "first"))

    def note(engine: Engine, _batch: str) -> dict:
        states[engine.state.iteration] = handler.state_dict()
        return {}

    run(handler, iterations=9, every=1, student=student, folder=tmp_path, checkpoint_every=1, step=note)
    for start in (8, 9):  # the kept ones
        resumed = labels_of(soft_store(tmp_path / "first"))
        resumed.load_state_dict(states[start])
        run(resumed, iterations=10, start=start, every=1, student=student, folder=tmp_path)
        assert resumed.store.folder.name == "iteration_8"


def test_a_checkpoint_cannot_name_a_folder():
    labels = PseudoLabels.__new__(PseudoLabels)
    with pytest.raises(ValueError, match="invalid literal"):
        labels.load_state_dict({"renewed": {"iteration": "x/../../outside", "weights": "0"}})
