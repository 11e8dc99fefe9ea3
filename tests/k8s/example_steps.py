"""That a real API server takes the manifests in docs/examples, under strict validation."""

import re
import subprocess

from cluster import run, say
from stand import ROOT, check, kubectl

EXAMPLES = ROOT / "docs/examples"


def judged(text):
    """What the API server says to manifests, and whether it would take them."""
    done = run("kubectl", "apply", "--dry-run=server", "--validate=strict", "-f", "-", input=text, check=False)
    return done.returncode == 0, (done.stdout + done.stderr).strip()


class ExampleSteps:
    def h_the_api_server_takes_every_example(self):
        definitions = run(ROOT / "tests/k8s/custom-resources", quiet=False, stdout=subprocess.PIPE).stdout.strip()
        # Too large for the annotation that a client-side apply leaves.
        kubectl("apply", "--server-side", "-f", definitions)
        kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        made = run("kubectl", "create", "namespace", "spark", check=False).returncode == 0
        taken = {}
        for file in sorted(EXAMPLES.glob("*.yaml")):
            text = file.read_text()
            if "apiVersion:" not in text:
                continue
            # A template's image is Spark's to fill in.
            image = r"\1\n      image: registry.example.com/spark-cachelet:3.5"
            text = re.sub(r"^(    - name: spark-kubernetes-\w+)$", image, text, flags=re.M)
            good, said = judged(text)
            check(good, f"{file.name}: {said}")
            taken[file.name] = len(said.splitlines())
            # A field that does not exist is refused.
            part = "spec" if "\nspec:\n" in text else "metadata"
            good, said = judged(text.replace(f"\n{part}:\n", f"\n{part}:\n  cacheletNoSuchField: 1\n", 1))
            check(not good and "cacheletNoSuchField" in said, f"{file.name} with a field that does not exist: {said}")
        say(f"      {len(taken)} files, {sum(taken.values())} objects: {', '.join(taken)}")
        if made:
            kubectl("delete", "namespace", "spark", "--wait=false")
        kubectl("delete", "-f", definitions, "--wait=false")
