"""Reads Kubernetes objects from YAML files, holds them against schemas, and prints them as JSON.

    objects.py FILE...

Kubernetes' own kinds against its OpenAPI schemas (strict: no unknown field) of the oldest and the newest version
that there are both; kinds that kvscout reads against deploy/crds. Kinds of others, for which no package registry
has a schema, are listed below; an unlisted one is an error. Exit status 1 and the complaints on stderr.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
# Gateways' and the Prometheus operator's.
OTHERS = {
    "gateway.networking.k8s.io",
    "gateway.envoyproxy.io",
    "aigateway.envoyproxy.io",
    "agentgateway.dev",
    "networking.istio.io",
    "monitoring.coreos.com",
}
# The chart's kubeVersion, and the newest that the package has.
VERSIONS = ("1.29", "1.37")


def strict(schema):
    """Structural schemas prune what they do not name; here it is refused."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for below in schema.values():
            strict(below)
    return schema


def definitions():
    """By (group/version, kind): the schemas of deploy/crds."""
    found = {}
    for file in sorted((ROOT / "deploy/crds").glob("*.yaml")):
        spec = yaml.safe_load(file.read_text())["spec"]
        for version in spec["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
            schema["properties"]["status"] = False
            found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = schema
    return found


def complaints(thing, known):
    version, kind = thing["apiVersion"], thing["kind"]
    if (version, kind) in known:
        for error in jsonschema.Draft202012Validator(known[version, kind]).iter_errors(thing):
            yield f"{error.json_path}: {error.message}"
    elif version.split("/")[0] not in OTHERS:
        for kubernetes in VERSIONS:
            try:
                kubernetes_validate.validate(thing, kubernetes, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield f"Kubernetes {kubernetes}: {'.'.join(map(str, error.path))}: {error.message}"
            except kubernetes_validate.SchemaNotFoundError as error:
                yield f"Kubernetes {kubernetes}: {error}"


def main(files):
    known, wrong = definitions(), False
    for file in files:
        for thing in yaml.safe_load_all(pathlib.Path(file).read_text()):
            if thing is None:
                continue
            for complaint in complaints(thing, known):
                wrong = True
                print(f"{file}: {thing['kind']} {thing['metadata']['name']}: {complaint}", file=sys.stderr)
            print(json.dumps(thing))
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
