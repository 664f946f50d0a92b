"""Fails on a package with a known vulnerability: `audit.py SITE_PACKAGES PIP_AUDIT...`, the latter a command.

Where no service with vulnerabilities can be reached, it says so and passes. pip-audit alone is not enough: of a
package that its service does not know it says that nothing is known to be wrong.
"""

import json
import subprocess
import sys

# The package itself, which no registry has.
OWN = "flipout-jax"


def audit(command: list[str], services: tuple[str, ...] = ("pypi", "osv")) -> int:
    """Asks one service after the other until one knows the packages; the exit status."""
    for service in services:
        options = ["--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
        try:
            # A network that swallows what is sent would keep it waiting for each package.
            done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=180)
        except subprocess.TimeoutExpired:
            print(f"{service}: no answer in time")
            continue
        try:
            packages = [p for p in json.loads(done.stdout)["dependencies"] if p["name"].replace("_", "-") != OWN]
        except (json.JSONDecodeError, KeyError):
            print(f"{service}: {(done.stderr.strip().splitlines() or ['no answer'])[-1]}")
            continue
        known = [package for package in packages if "skip_reason" not in package]
        unknown = [package["name"] for package in packages if "skip_reason" in package]
        if not known:
            print(f"{service}: knows none of the {len(packages)} packages")
            continue
        vulnerable = [package for package in known if package["vulns"]]
        for package in vulnerable:
            for found in package["vulns"]:
                fixed = ", ".join(found["fix_versions"]) or "no release yet"
                print(f"VULNERABLE: {package['name']} {package['version']}: {found['id']}, fixed in {fixed}")
        if unknown:
            print(f"{service} does not know: {', '.join(unknown)}")
        print(f"{service}: {len(vulnerable)} of {len(known)} packages have known vulnerabilities")
        return 1 if vulnerable else 0
    print(f"\n{'!' * 100}\n!!! NOT AUDITED: no service with known vulnerabilities could be reached.\n{'!' * 100}\n")
    return 0


if __name__ == "__main__":
    sys.exit(audit([*sys.argv[2:], "--path", sys.argv[1]]))
