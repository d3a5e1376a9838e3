"""Many callers at once, of one session and of several; `make sanitize-threads` looks for races in it."""

import numpy as np
import pytest
import runner_cases


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return runner_cases.samples(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("threads", ["1", "2"])
@pytest.mark.parametrize(("sessions", "callers"), [(1, 8), (8, 1), (3, 3)])
def test_callers_do_not_disturb_each_other(sessions, callers, threads, samples, tmp_path):
    chosen = [samples[name] for name in ("mlp", "mlp-int8")]
    feeds = chosen[0].feeds
    cases = runner_cases.write_cases(tmp_path / "cases", feeds)
    models = [word for sample in chosen for word in ("--model", sample.path)]
    many = ("--sessions", str(sessions), "--callers", str(callers), "--threads", threads, "--outputs", tmp_path)
    short = ("--budget", "0.5", "--sittings", "2", "--cases", cases)
    found = runner_cases.result("--scenario", "throughput", *many, *short, *models)
    conditions = found["conditions"]
    assert (conditions["sessions"], conditions["callers"]) == (sessions, callers)
    assert found["complete"] is True
    for number, sample in enumerate(chosen):
        assert found["models"][number]["inferences"] >= sessions * callers
        for case, (wanted,) in enumerate(runner_cases.python_answers(sample)):
            got = np.load(tmp_path / f"{number}-{case}-0.npy")
            runner_cases.assert_same(got, wanted, exact=sample.exact, tolerance=1e-5)
