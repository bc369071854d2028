"""A model whose loading does not end fails, and its worker is ended."""


def test_a_worker_that_is_not_ready_in_time_is_killed_and_the_deployment_says_why(
    stage,
):
    stage.deploy()
    (handle,) = stage.alive
    stage.tick(seconds=599)
    assert handle.code is None
    stage.tick(2, seconds=2)
    assert handle.code is not None
    assert (
        "not loaded within 600 seconds (limits.load_seconds)"
        in stage.row().error
    )


def test_a_worker_that_is_ready_may_live_longer(stage):
    stage.deploy()
    stage.ready()
    stage.tick(2, seconds=700)
    assert len(stage.alive) == 1
    assert stage.row().error == ""


def test_a_worker_gets_the_digest_that_was_registered(stage):
    stage.deploy()
    (handle,) = stage.alive
    version = stage.registry.get(stage.project, "digits:1")
    assert handle.spec["digest"] == version.digest != ""
