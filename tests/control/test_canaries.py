"""Canaries and shadows: they come beside the main version, and go by themselves when they are
worse.
"""

from modelmill.control.reconciler.canary import Tally
from tests.control.stage import asleep, with_canary


def test_a_canary_gets_a_worker_and_then_its_share(stage):
    with_canary(stage)
    assert stage.versions == [1, 2]
    (side,) = stage.route().others
    assert (side.version, side.ready, side.weight, side.shadow) == (
        2,
        False,
        0.2,
        False,
    )
    stage.ready()
    route = stage.route()
    (side,) = route.others
    assert (route.version, side.ready, side.sockets) == (
        1,
        True,
        [stage.cluster.started[1].spec["socket"]],
    )
    stage.tick(20, 1)
    assert len(stage.cluster.started) == 2


def test_other_options_roll_a_canary_too(stage):
    with_canary(stage)
    stage.ready()
    main, old = stage.alive
    stage.deploy(batch=1)
    news = [one for one in stage.alive if one not in (main, old)]
    assert [(one.spec["version"], one.spec["batch"]) for one in news] == [
        (2, 1),
        (1, 1),
    ]
    assert (main.asked, old.asked) == (
        0,
        0,
    )  # they answer until the new ones do
    stage.ready(*news)
    assert stage.alive == news
    (side,) = stage.route().others
    assert side.sockets == [news[0].spec["socket"]]
    stage.tick(5, 1)
    assert stage.alive == news


def test_a_promoted_canary_keeps_its_worker(stage):
    with_canary(stage)
    stage.ready()
    old, new = stage.alive
    stage.wanted.promote(stage.project, "digits")
    stage.tick(3)
    assert stage.alive == [new]
    route = stage.route()
    assert (route.version, route.sockets, route.others) == (
        2,
        [new.spec["socket"]],
        [],
    )
    assert len(stage.cluster.started) == 2
    assert old.asked == 1


def test_promoting_what_is_not_ready_or_too_few_rolls(stage):
    stage.deploy(replicas=2, threads=2)
    stage.ready()
    stage.beside("digits:2", weight=0.5)
    stage.wanted.promote(stage.project, "digits")
    stage.tick()
    assert (stage.versions, stage.route().version) == ([1, 1, 2, 2], 1)
    stage.ready()
    assert (stage.versions, stage.route().version) == ([2, 2], 2)
    assert len(stage.cluster.started) == 4


def test_promoting_while_another_version_rolls_in(stage):
    with_canary(stage)
    stage.ready()
    stage.deploy("digits:3")
    assert stage.versions == [1, 2, 3]
    stage.wanted.promote(stage.project, "digits")
    stage.tick(3)
    assert (stage.versions, stage.route().version, stage.route().others) == (
        [2],
        2,
        [],
    )


def test_a_canary_of_a_sleeping_deployment_can_be_promoted(stage):
    asleep(stage)
    stage.beside("digits:2", weight=0.1)
    stage.ready()
    stage.wanted.promote(stage.project, "digits")
    stage.tick(3)
    assert (stage.versions, stage.route().version, stage.route().asleep) == (
        [2],
        2,
        False,
    )
    assert len(stage.cluster.started) == 2


def test_a_canary_of_another_model(stage):
    stage.deploy("digits:1", "app")
    stage.ready()
    stage.beside("letters:1", "app", weight=0.5)
    stage.ready()
    (side,) = stage.route("app").others
    assert (side.model, side.version, side.ready) == ("letters", 1, True)
    stage.wanted.promote(stage.project, "app")
    stage.tick(3)
    assert (
        stage.route("app").model,
        [model for model, *_ in stage.staying],
    ) == (
        "letters",
        ["letters"],
    )


def test_a_canary_that_is_taken_away_loses_its_worker(stage):
    with_canary(stage)
    stage.ready()
    stage.wanted.drop_variants(stage.project, "digits")
    stage.tick(2)
    assert (stage.versions, stage.route().others) == ([1], [])


def test_a_canary_that_is_worse_is_rolled_back_with_a_note(stage):
    with_canary(stage)
    stage.tick(1, 1)
    stage.ready()
    stage.tallies = {
        "digits:1": Tally(100, 0, 1.0),
        "digits:2": Tally(10, 5, 0.1),
    }
    stage.tick(3, 1)
    assert len(stage.route().others) == 1  # too few to say
    stage.tallies["digits:2"] = Tally(10, 15, 0.1)
    stage.tick(3, 1)
    assert stage.route().others == []
    assert (
        stage.row().note
        == "digits:2 was rolled back: 15 of 25 requests failed (limit 5%)"
    )
    assert (stage.versions, stage.route().ready, stage.row().error) == (
        [1],
        True,
        "",
    )


def test_a_canary_is_not_judged_by_what_came_before_it(stage):
    stage.tallies = {
        "digits:1": Tally(100, 0, 1.0),
        "digits:2": Tally(0, 500, 0.0),
    }
    with_canary(stage)
    stage.ready()
    stage.tick(3, 1)
    assert len(stage.route().others) == 1
    stage.wanted.drop_variants(stage.project, "digits")
    stage.tick(2, 1)
    stage.tallies["digits:2"] = Tally(
        0, 900, 0.0
    )  # it was asked by its number meanwhile
    stage.beside("digits:2", weight=0.5)
    stage.ready()
    stage.tick(3, 1)
    assert len(stage.route().others) == 1


def test_a_canary_is_compared_with_the_version_that_serves_now(stage):
    with_canary(stage)
    stage.ready()
    stage.tallies = {
        "digits:1": Tally(100_000, 5000, 1000.0),
        "digits:2": Tally(),
    }
    stage.tick(2, 1)
    stage.deploy("digits:3")
    stage.ready()
    assert stage.route().version == 3
    stage.tallies |= {
        "digits:3": Tally(50, 0, 0.5),
        "digits:2": Tally(50, 0, 0.5),
    }
    stage.tick(3, 1)
    assert len(stage.route().others) == 1


def test_shadows_are_not_judged(stage):
    with_canary(stage, weight=0.0, shadow=True)
    stage.ready()
    stage.tallies = {"digits:1": Tally(100, 0, 1.0), "digits:2": Tally(0, 500)}
    stage.tick(5, 1)
    (side,) = stage.route().others
    assert (side.shadow, side.ready, side.weight) == (True, True, 0.0)


def test_a_canary_that_does_not_start_is_rolled_back_and_may_be_tried_again(
    stage,
):
    with_canary(stage)
    for _ in range(200):
        for one in stage.alive[1:]:
            one.said.append({"error": "model.onnx was changed"})
            one.code = 1
        stage.tick(seconds=0.25)
    assert len(stage.cluster.started) == 1 + 3
    assert (
        stage.row().note == "digits:2 was rolled back: model.onnx was changed"
    )
    assert (stage.row().error, stage.route().ready, stage.route().others) == (
        "",
        True,
        [],
    )
    stage.beside("digits:2", weight=0.5)
    stage.alive[-1].code = 1
    stage.tick()
    assert len(stage.route().others) == 1  # a new trial has new chances


def test_a_canary_that_somebody_takes_away_while_it_fails_is_not_noted(stage):
    with_canary(stage)
    for _ in range(2):
        stage.alive[1].code = 1
        stage.tick(2, 10)
    stage.wanted.drop_variants(stage.project, "digits")
    stage.alive[1].code = 1
    stage.tick(3)
    assert stage.row().note == ""


def test_a_rollback_keeps_what_somebody_added_meanwhile(stage):
    with_canary(stage)
    stage.ready()
    stage.tick(1, 1)
    stage.tallies = {"digits:1": Tally(100, 0, 1.0), "digits:2": Tally(0, 100)}
    write = stage.loop._writes.write

    def add_first(workers):
        stage.loop._writes.write = write
        stage.wanted.add_variant(
            stage.project, "digits:3", "digits", weight=0.5
        )
        write(workers)

    stage.loop._writes.write = add_first
    stage.tick(1, 1)
    assert [one["version"] for one in stage.row().variants] == [3]
    assert "digits:2 was rolled back" in stage.row().note


def test_an_unloaded_deployment_has_no_canary_either(stage):
    with_canary(stage)
    stage.ready()
    stage.wanted.set_loaded(stage.project, "digits", False)
    stage.tick(2)
    assert stage.staying == []
    stage.wanted.set_loaded(stage.project, "digits", True)
    stage.tick()
    assert sorted(stage.versions) == [1, 2]
