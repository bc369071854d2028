"""What is wanted under which name, and what gateways are told of it."""

import pytest
from sqlalchemy import update

from modelmill.control import views
from modelmill.control.db import ROUTES, Deployment, Replica, Version, bump
from modelmill.control.deployments import Deployments
from modelmill.control.keys import Keys, ensure_admin_key
from modelmill.control.options import options_of
from modelmill.errors import Conflict, InvalidInput, NotFound
from modelmill.types import BY_HAND, ServingOptions, TensorSpec
from tests.helpers.bundles import plain_bundle


@pytest.fixture
def wanted(database, registry, project, tmp_path):
    for number in (1, 2, 3, 4):
        registry.add(
            project,
            "digits",
            plain_bundle(
                tmp_path / f"b{number}", metrics={"accuracy": number / 10}
            ),
            None,
        )
    other = [TensorSpec(name="pixels", datatype="UINT8", shape=[-1, 2, 2, 1])]
    registry.add(
        project, "others", plain_bundle(tmp_path / "o", inputs=other), None
    )
    registry.add(
        project,
        "letters",
        plain_bundle(tmp_path / "l", labels=["a", "b"]),
        None,
    )
    return Deployments(database, registry)


@pytest.fixture
def serve(database, wanted, project):
    """Write down workers as the loop would: `serve(row, version, ...)`; the last word of each is
    what counts.
    """

    def write(row, *versions, model="digits", **seen):
        with database.session() as session:
            for number, version in enumerate(versions):
                values = {
                    "socket": f"{row.name}-{version}-{number}",
                    "pid": 1,
                    "ready": True,
                    "batch": 8,
                } | seen
                session.add(
                    Replica(
                        project_id=project,
                        deployment_id=row.id,
                        model=model,
                        version=version,
                        **values,
                    )
                )
            session.execute(
                update(Deployment)
                .where(Deployment.id == row.id)
                .values(serving_model=model, serving=versions[0])
            )
            bump(session, ROUTES)

    return write


def route(wanted, name="digits"):
    return wanted.snapshot(None).routes[f"default/{name}"]


# ---- options


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        ([{}], {}),
        ([{"replicas": 3}], {"min_replicas": 3, "max_replicas": 3}),
        (
            [{"replicas": 3}, {}],
            {"min_replicas": 3, "max_replicas": 3},
        ),  # what is not said stays
        (
            [{"replicas": 3, "engine": "openvino"}, {"threads": 2}],
            {
                "min_replicas": 3,
                "max_replicas": 3,
                "engine": "openvino",
                "threads": 2,
            },
        ),
        ([{"min_replicas": 2}], {"min_replicas": 2, "max_replicas": 2}),
        ([{"min_replicas": 0}], {"min_replicas": 0, "max_replicas": 1}),
        (
            [{"min_replicas": 1, "max_replicas": 4}, {"min_replicas": 2}],
            {"min_replicas": 2, "max_replicas": 4},
        ),
        (
            [{"min_replicas": 1, "max_replicas": 4}, {"replicas": 2}],
            {"min_replicas": 2, "max_replicas": 2},
        ),
        ([{"max_wait_ms": 5.0}, {"max_wait_ms": 0.0}], {}),
        ([{"batch": 4}, {"threads": 2}], {"batch": 4, "threads": 2}),
        ([{"batch": 4}, {"batch": 0}], {}),
        ([{"precision": "bf16"}, {"precision": None}], {"precision": "bf16"}),
        ([{"precision": "bf16"}, {"precision": ""}], {}),
    ],
)
def test_options_are_kept_until_they_are_changed(
    wanted, project, steps, options
):
    for step in steps:
        row = wanted.deploy(project, "digits:1", "", **step)
    assert options_of(wanted.get(project, "digits")) == ServingOptions(
        **options
    )
    assert row.replicas == max(1, options.get("min_replicas", 1))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"min_replicas": 3, "max_replicas": 2},
            "max_replicas is 2: at least 1 and not below min_replicas",
        ),
        ({"max_replicas": 0, "min_replicas": 0}, "max_replicas is 0"),
        ({"engine": "onyx"}, "unknown engine 'onyx'; did you mean 'onnx'"),
    ],
)
def test_options_that_can_not_be_are_refused_and_nothing_changes(
    wanted, project, options, says
):
    wanted.deploy(project, "digits:1", "")
    with pytest.raises((InvalidInput, NotFound), match=says):
        wanted.deploy(project, "digits:2", "", **options)
    assert wanted.get(project, "digits").version == 1


def test_names_of_another_project_are_unknown(wanted, other, project):
    wanted.deploy(project, "digits:1", "")
    with pytest.raises(NotFound):
        wanted.deploy(other, "digits:1", "")
    with pytest.raises(
        NotFound, match="unknown deployment 'digits'; there are none yet"
    ):
        wanted.undeploy(other, "digits")
    assert wanted.all(other) == []


def test_unknown_names_are_refused_with_those_that_exist(wanted, project):
    wanted.deploy(project, "digits:1", "")
    for change in (
        wanted.undeploy,
        wanted.promote,
        wanted.drop_variants,
        wanted.get,
    ):
        with pytest.raises(
            NotFound, match="unknown deployment 'digit'; did you mean 'digits'"
        ):
            change(project, "digit")
    with pytest.raises(NotFound):
        wanted.set_loaded(project, "digit", True)


# ---- canaries and shadows


def test_canaries_and_shadows_stand_beside_the_main_version(wanted, project):
    wanted.deploy(project, "digits:1", "")
    wanted.add_variant(project, "digits:2", "digits", weight=0.25)
    wanted.add_variant(project, "digits:3", "", shadow=True)
    # Anew
    wanted.add_variant(
        project,
        "digits:2",
        "digits",
        weight=0.5,
        max_error_rate=0.2,
        max_slowdown=None,
    )
    others = route(wanted).others
    assert [(one.version, one.weight, one.shadow) for one in others] == [
        (3, 0.0, True),
        (2, 0.5, False),
    ]
    kept = {
        one["version"]: one for one in wanted.get(project, "digits").variants
    }
    assert (
        kept[2]["max_error_rate"],
        kept[2]["max_slowdown"],
        kept[3]["max_error_rate"],
    ) == (0.2, 3.0, 0.05)


def test_what_can_not_stand_beside_it_is_refused(wanted, project):
    wanted.deploy(project, "digits:1", "")
    with pytest.raises(
        Conflict, match="digits:1 is what 'digits' serves already"
    ):
        wanted.add_variant(project, "digits:1", "digits", weight=0.5)
    with pytest.raises(
        Conflict, match="others:1 takes other inputs than 'digits' serves"
    ):
        wanted.add_variant(project, "others:1", "digits", weight=0.5)
    with pytest.raises(NotFound):
        wanted.add_variant(project, "digits:9", "digits", weight=0.5)
    wanted.add_variant(project, "digits:2", "digits", weight=0.75)
    with pytest.raises(InvalidInput, match="more than all requests"):
        wanted.add_variant(project, "digits:3", "digits", weight=0.5)
    assert [
        one["version"] for one in wanted.get(project, "digits").variants
    ] == [2]


@pytest.mark.parametrize(
    "weights",
    [(0.1, 0.2, 0.7), (0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.34, 0.33, 0.33)],
)
def test_shares_that_are_all_together_are_not_too_many(
    wanted, project, weights
):
    wanted.deploy(project, "digits:1", "")
    for version, weight in enumerate(weights, 2):
        wanted.add_variant(
            project, f"digits:{version}", "digits", weight=weight
        )


def test_promoting_says_which_is_meant(wanted, project):
    wanted.deploy(project, "digits:1", "")
    with pytest.raises(Conflict, match="has these canaries and shadows: none"):
        wanted.promote(project, "digits")
    wanted.add_variant(project, "digits:2", "digits", weight=0.25)
    wanted.add_variant(project, "digits:3", "digits", shadow=True)
    with pytest.raises(
        Conflict, match="digits:2, digits:3; name the version that is meant"
    ):
        wanted.promote(project, "digits")
    with pytest.raises(Conflict):
        wanted.promote(project, "digits", 4)
    row = wanted.promote(project, "digits", 3)
    assert (row.version, [one["version"] for one in row.variants]) == (3, [2])


def test_taking_one_or_all_away(wanted, project):
    wanted.deploy(project, "digits:1", "")
    for version in (2, 3, 4):
        wanted.add_variant(project, f"digits:{version}", "digits", weight=0.25)
    assert [
        one["version"]
        for one in wanted.drop_variants(project, "digits", 3).variants
    ] == [2, 4]
    assert wanted.drop_variants(project, "digits").variants == []
    with pytest.raises(Conflict):
        wanted.drop_variants(project, "digits")


def test_deploying_a_canary_promotes_it(wanted, project):
    wanted.deploy(project, "digits:1", "")
    wanted.add_variant(project, "digits:2", "digits", weight=0.25)
    row = wanted.deploy(project, "digits:2", "")
    assert (row.version, row.variants) == (2, [])


# ---- what gateways are told


def test_a_snapshot_is_made_only_when_something_changed(
    wanted, project, database, tmp_path, serve
):
    key = ensure_admin_key(database, tmp_path).read_text().strip()
    row = wanted.deploy(project, "digits:1", "")
    first = wanted.snapshot(None)
    assert wanted.snapshot(first) is None
    assert [(info.project, info.role) for info in first.keys.values()] == [
        ("default", "admin")
    ]
    assert key not in first.keys
    serve(row, 1)
    second = wanted.snapshot(first)
    assert second.routes["default/digits"].ready
    assert (
        second.keys is first.keys
    )  # so that gateways keep what they know of callers
    Keys(database).add(project, "shop", "user", 0, 0)
    third = wanted.snapshot(second)
    assert len(third.keys) == 2
    assert third.routes is second.routes
    with database.session() as session:
        bump(session)  # such as a job
    assert wanted.snapshot(third) is None


def test_a_route_says_what_the_model_takes_and_how_it_is_served(
    wanted, project, serve
):
    row = wanted.deploy(
        project, "digits:1", "", engine="openvino", max_wait_ms=20.0
    )
    serve(row, 1)
    found = route(wanted)
    assert (found.model, found.version, found.task, found.kind) == (
        "digits",
        1,
        "image-classification",
        "image",
    )
    assert (found.engine, found.max_wait, found.batch, found.labels) == (
        "openvino",
        0.02,
        8,
        ["dark", "bright"],
    )
    assert [spec.name for spec in found.inputs] == ["image"]
    assert (found.sockets, found.created > 0) == (["digits-1-0"], True)


def test_what_rolls_is_routed_to_the_version_that_serves(
    wanted, project, serve
):
    row = wanted.deploy(project, "digits:1", "")
    serve(row, 1)
    wanted.deploy(project, "letters:1", "digits")
    assert (
        route(wanted).model,
        route(wanted).version,
        route(wanted).ready,
    ) == (
        "digits",
        1,
        True,
    )


def test_a_canary_is_routed_when_its_worker_is_there(wanted, project, serve):
    row = wanted.deploy(project, "digits:1", "")
    serve(row, 1)
    wanted.add_variant(project, "digits:2", "digits", weight=0.5)
    assert [(one.version, one.ready) for one in route(wanted).others] == [
        (2, False)
    ]
    serve(row, 1, 2, 2)
    assert [(one.ready, one.sockets) for one in route(wanted).others] == [
        (True, ["digits-2-1", "digits-2-2"])
    ]


def test_loading_and_unloading_are_reported_once(wanted, project, serve):
    row = wanted.deploy(project, "digits:1", "")
    serve(row, 1)
    wanted.set_loaded(project, "digits", False)
    snapshot = wanted.snapshot(None)
    assert (
        snapshot.routes["default/digits"].ready,
        snapshot.routes["default/digits"].loaded,
    ) == (False, False)
    wanted.set_loaded(project, "digits", False)
    assert wanted.snapshot(snapshot) is None
    wanted.set_loaded(project, "digits", True)
    assert wanted.snapshot(snapshot).routes["default/digits"].loaded


def test_a_manifest_that_says_what_the_model_takes_needs_no_task(
    wanted, project, database
):
    wanted.deploy(project, "digits:1", "")
    with database.session() as session:
        manifest = dict(
            session.query(Version).filter_by(model="digits").first().manifest
        )
        manifest |= {
            "task": "a-task-that-was-uninstalled",
            "takes": "video",
            "gives": "labels",
            "streams": False,
        }
        session.execute(
            update(Version)
            .where(Version.model == "digits")
            .values(manifest=manifest)
        )
    found = route(Deployments(database, wanted._registry))
    assert (found.kind, found.output, found.grows) == ("video", "labels", False)


def test_a_deployment_that_can_not_be_routed_does_not_hide_the_others(
    wanted, project, database
):
    wanted.deploy(project, "digits:1", "")
    wanted.deploy(project, "letters:1", "")
    with database.session() as session:
        manifest = dict(
            session.query(Version).filter_by(model="letters").one().manifest
        )
        manifest["task"] = "a-task-that-was-uninstalled"
        session.execute(
            update(Version)
            .where(Version.model == "letters")
            .values(manifest=manifest)
        )
    fresh = Deployments(database, wanted._registry)
    assert fresh.snapshot(None).routes.keys() == {"default/digits"}


# ---- what people see


@pytest.mark.parametrize(
    ("values", "ready", "state"),
    [
        ({}, [], "loading"),
        ({"serving": 1}, [1], "ready"),
        ({"serving": 1}, [], "loading"),
        ({"serving": 2}, [2], "loading"),
        ({"serving": 2, "error": "it broke"}, [2], "failed"),
        ({"serving": 1, "asleep": True}, [], "asleep"),
        ({"asleep": True, "error": "it broke"}, [], "failed"),
        ({"loaded": False, "serving": 1}, [], "unloaded"),
    ],
)
def test_the_state_of_a_deployment_in_one_word(
    wanted, project, database, serve, values, ready, state
):
    row = wanted.deploy(project, "digits:1", "")
    if ready:
        serve(row, *ready, memory=5)
    with database.session() as session:
        said = {"serving_model": "digits"} | values
        session.execute(update(Deployment).values(**said))
    seen = views.deployment_view(
        wanted.get(project, "digits"),
        wanted.replicas(project),
        wanted._registry.tasks(project),
    )
    assert (seen.state, seen.ready_replicas, seen.memory) == (
        state,
        len(ready),
        5 * len(ready),
    )


@pytest.mark.parametrize(
    ("said", "batch", "batches"),
    [
        ({"batch": 8}, 8, "up to 8 calls share a batch"),
        (
            {"batch": 1},
            1,
            "calls are answered one at a time: the model gains nothing",
        ),
        (
            {"batch": 1, "alone": "rows of a batch depend on one another"},
            1,
            "calls are answered one at a time: rows of a batch depend on one another",
        ),
        ({"batch": 8, "ready": False}, 0, ""),
    ],
)
def test_a_view_says_how_many_calls_share_a_batch_and_why(
    wanted, project, database, serve, said, batch, batches
):
    row = wanted.deploy(project, "digits:1", "")
    serve(row, 1, **said)
    with database.session() as session:
        session.execute(
            update(Deployment).values(serving_model="digits", serving=1)
        )
    seen = views.deployment_view(
        wanted.get(project, "digits"),
        wanted.replicas(project),
        wanted._registry.tasks(project),
    )
    assert seen.batch == batch
    assert seen.batches.startswith(batches)
    assert bool(seen.batches) == bool(batches)


@pytest.mark.parametrize(
    ("batch", "said", "state"),
    [
        (1, {"batch": 8}, "loading"),
        (4, {"batch": 8}, "loading"),
        (4, {"batch": 4}, "ready"),
        (1, {"batch": 1, "alone": BY_HAND}, "ready"),
        (0, {"batch": 1, "alone": BY_HAND}, "loading"),
        (0, {"batch": 8}, "ready"),
    ],
)
def test_a_worker_of_another_batch_is_not_the_wanted_one(
    wanted, project, database, serve, batch, said, state
):
    row = wanted.deploy(project, "digits:1", "", batch=batch)
    serve(row, 1, **said)
    with database.session() as session:
        session.execute(
            update(Deployment).values(serving_model="digits", serving=1)
        )
    seen = views.deployment_view(
        wanted.get(project, "digits"),
        wanted.replicas(project),
        wanted._registry.tasks(project),
    )
    assert seen.state == state


def test_a_view_names_canaries_and_options(wanted, project, serve):
    row = wanted.deploy(project, "digits:1", "", min_replicas=0, max_replicas=3)
    wanted.add_variant(project, "digits:2", "digits", weight=0.25)
    serve(row, 1, 2)
    seen = views.deployment_view(
        wanted.get(project, "digits"),
        wanted.replicas(project),
        wanted._registry.tasks(project),
    )
    (side,) = seen.variants
    assert (
        side.model,
        side.version,
        side.weight,
        side.shadow,
        side.ready_replicas,
    ) == ("digits", 2, 0.25, False, 1)
    assert (
        seen.options["min_replicas"],
        seen.options["max_replicas"],
        seen.serving,
    ) == (0, 3, 1)
