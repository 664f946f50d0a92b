"""The audit fails on what is known, and only then; in place of pip-audit, a script that prints what that would."""

import json
import sys

import pytest
from audit import audit


def package(name, *ids, **rest):
    return {"name": name, "version": "1.0", "vulns": [{"id": i, "fix_versions": ["1.1"]} for i in ids], **rest}


def skipped(name):
    return {"name": name, "skip_reason": "Dependency not found on PyPI"}


@pytest.fixture
def tool(tmp_path):
    """`tool(answers)`: a command that prints the answer of each service, or fails where there is none."""

    def tool(answers):
        script = tmp_path / "pip_audit.py"
        script.write_text(
            f"import sys\nanswer = {answers!r}.get(sys.argv[sys.argv.index('--vulnerability-service') + 1])\n"
            "print(answer) if answer else sys.exit('ConnectionError: no route')\n"
        )
        return [sys.executable, str(script)]

    return lambda **answers: tool({s: json.dumps({"dependencies": found}) for s, found in answers.items()})


def test_a_known_vulnerability_fails(tool, capsys):
    assert audit(tool(pypi=[package("good"), package("bad", "CVE-1"), skipped("odd")])) == 1
    out = capsys.readouterr().out
    assert "VULNERABLE: bad 1.0: CVE-1, fixed in 1.1" in out
    assert "pypi does not know: odd" in out


def test_nothing_known_passes(tool, capsys):
    assert audit(tool(pypi=[package("good"), skipped("flipout_jax")])) == 0
    assert "0 of 1 packages have known vulnerabilities" in capsys.readouterr().out


def test_a_service_that_knows_no_package_is_not_believed(tool, capsys):
    assert audit(tool(pypi=[skipped("bad")], osv=[package("bad", "CVE-1")])) == 1
    assert "pypi: knows none of the 1 packages" in capsys.readouterr().out


@pytest.mark.parametrize("answers", [{}, {"pypi": [skipped("good")]}])
def test_no_service_is_said_aloud_and_passes(tool, capsys, answers):
    assert audit(tool(**answers)) == 0
    assert "NOT AUDITED" in capsys.readouterr().out
