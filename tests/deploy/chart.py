"""Checks the Helm chart: lints it, renders it with every value in use, validates each object, and checks that the objects fit together.

    chart.py                     checks the chart, and that kustomize/base.yaml is its default output
    chart.py --write             writes kustomize/base.yaml
    chart.py --render [JSON]     prints the chart's output with these values
    chart.py --check-objects     checks objects of the same kinds from standard input
"""

import json
import re
import sys
from pathlib import Path

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint
from helm_python.errors import HelmError

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts/embedding-server"
BASE = ROOT / "kustomize/base.yaml"
VERSIONS = ["1.30", "1.33", "1.37"]
FULL = {
    "image": {"digest": "sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "config": '[server]\nmax_inputs = 100\n\n[[models]]\nid = "a"\npath = "org/a"\n',
    "env": [{"name": "EMBEDDING_SERVER_LOG_LEVEL", "value": "debug"}],
    "envFrom": [{"secretRef": {"name": "keys"}}],
    "models": {"fetch": ["org/a", "org/b@main"], "hubTokenSecret": "hub"},
    "autoscaling": {"enabled": True, "queueDepth": 4},
    "service": {"annotations": {"a": "b"}},
    "networkPolicy": {"from": [{"namespaceSelector": {}}], "egress": [{"ports": [{"port": 4318}]}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "search"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "priorityClassName": "high",
    "extraVolumes": [{"name": "tokenizers", "configMap": {"name": "tokenizers"}}],
    "extraVolumeMounts": [{"name": "tokenizers", "mountPath": "/tokenizers", "readOnly": True}],
    "serviceAccount": {"create": True, "annotations": {"a": "b"}},
}
SECURE = {
    "config": "[server]\nmax_inputs = 100\n",
    "tls": {"secretName": "tls"},
    "apiKeys": {"secretName": "keys", "metricsNeedKey": True},
    "service": {"port": 443},
    "serviceAccount": {"name": "shared"},
    "ingress": {
        "enabled": True,
        "className": "nginx",
        "annotations": {"nginx.ingress.kubernetes.io/backend-protocol": "HTTPS"},
        "hosts": [{"host": "a.example.org"}, {"host": "b.example.org", "path": "/b"}],
        "tls": [{"secretName": "a-tls", "hosts": ["a.example.org"]}],
    },
    "serviceMonitor": {
        "enabled": True,
        "keySecret": {"name": "metrics-key"},
        "tlsConfig": {"serverName": "a.example.org"},
    },
}
WRONG = [
    {"replica": 3},
    {"replicas": "3"},
    {"image": {"digest": "sha256:abc"}},
    {"models": {"fetch": ["no-id"]}},
    {"models": {"claim": "models", "fetch": ["org/a"]}},
    {"autoscaling": {"enabled": True, "cpu": 0}},
    {"service": {"port": 0}},
    {"ingress": {"enabled": True}},
    {"apiKeys": {"metricsNeedKey": True, "secretName": "keys"}, "serviceMonitor": {"enabled": True}},
]


def render(values, name="embedding-server"):
    with Chart.load(CHART) as chart:
        files = chart.render(values=values, name=name)
    return by_kind(o for _, text in sorted(files.items()) for o in yaml.safe_load_all(text))


def by_kind(objects):
    return {o["kind"]: o for o in objects if o}


def check(objects, metrics):
    for kind, o in objects.items():
        if kind == "ServiceMonitor":
            continue  # not a kind of Kubernetes itself; its selector and port are checked below
        for version in VERSIONS:
            kubernetes_validate.validate(o, version, strict=True)

    pod = objects["Deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    spec = pod["spec"]
    (container,) = spec["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 5000}
    for each in [container, *spec.get("initContainers", [])]:
        security = each["securityContext"]
        assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], security
        assert security["capabilities"] == {"drop": ["ALL"]}
    assert spec["securityContext"]["runAsNonRoot"] and not spec["automountServiceAccountToken"]
    # Otherwise a Service called embedding-server would set EMBEDDING_SERVER_PORT.
    assert spec["enableServiceLinks"] is False
    # Every mounted volume exists, and the variables that name files name files on mounted volumes.
    mounts = {mount["name"]: mount for mount in container.get("volumeMounts", [])}
    assert mounts.keys() == {volume["name"] for volume in spec.get("volumes", [])}, mounts
    env = {each["name"].removeprefix("EMBEDDING_SERVER_"): each["value"] for each in container["env"]}
    scheme = "HTTPS" if "TLS_CERT" in env else "HTTP"
    assert {"TLS_CERT", "TLS_KEY"} & env.keys() in (set(), {"TLS_CERT", "TLS_KEY"})
    for name, mount in [("TLS_CERT", "tls"), ("TLS_KEY", "tls"), ("API_KEY_FILE", "keys")]:
        assert name not in env or env[name].startswith(mounts[mount]["mountPath"] + "/"), env
        assert name not in env or env["RELOAD_INTERVAL"] == "30s"
    if config := objects.get("ConfigMap"):
        (file,) = config["data"]
        assert container["args"] == ["serve", "--config", f"{mounts['config']['mountPath']}/{file}"]
    for probe, path in [("livenessProbe", "/health"), ("readinessProbe", "/ready")]:
        assert container[probe]["httpGet"] == {"path": path, "port": "http", "scheme": scheme}
    # The drain must end before Kubernetes kills the process.
    assert spec["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + 30

    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(t["labelSelector"]["matchLabels"] for t in spec["topologySpreadConstraints"]),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors), selectors
    if monitor := objects.get("ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= objects["Service"]["metadata"]["labels"].items()
        (endpoint,) = monitor["spec"]["endpoints"]
        assert endpoint["port"] in {port["name"] for port in objects["Service"]["spec"]["ports"]}
        assert endpoint["path"] == "/metrics" and endpoint.get("scheme", "http") == scheme.lower()
        assert ("authorization" in endpoint) == (env.get("METRICS_NEED_KEY") == "true")
    if ingress := objects.get("Ingress"):
        for rule in ingress["spec"]["rules"]:
            (path,) = rule["http"]["paths"]
            service = path["backend"]["service"]
            assert service["name"] == objects["Service"]["metadata"]["name"] and service["port"] == {"name": "http"}
    if account := objects.get("ServiceAccount"):
        assert spec["serviceAccountName"] == account["metadata"]["name"]
    if scaler := objects.get("HorizontalPodAutoscaler"):
        assert "replicas" not in objects["Deployment"]["spec"]
        names = {m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"] if m["type"] == "Pods"}
        assert names and names <= metrics, names
    return sorted(objects)


def served_metrics():
    """Returns the metric names in docs/operations.md. tests/it/operations.rs compares them with a running server."""
    return set(re.findall(r"`((?:embedding_server|process)_\w+)`", (ROOT / "docs/operations.md").read_text()))


def base():
    objects = render({}).values()
    for o in objects:
        del o["metadata"]["labels"]["helm.sh/chart"], o["metadata"]["labels"]["app.kubernetes.io/managed-by"]
    return "# What charts/embedding-server renders by default: tests/deploy/chart.py --write\n---\n" + yaml.safe_dump_all(
        objects, sort_keys=False
    )


def main():
    match sys.argv[1:]:
        case ["--write"]:
            BASE.write_text(base())
            return
        case ["--render", *values]:
            print(yaml.safe_dump_all(render(json.loads(values[0]) if values else {}).values()))
            return
        case ["--check-objects"]:
            print("valid for Kubernetes", *VERSIONS, "-", *check(by_kind(yaml.safe_load_all(sys.stdin)), served_metrics()))
            return
    found = lint(CHART)
    problems = [m for m in found["messages"] if m["error"] != "icon is recommended"]
    assert not found["errors"] and not problems, found
    for values in [{}, {"models": {"claim": "models"}}, FULL, SECURE]:
        print("valid for Kubernetes", *VERSIONS, "-", *check(render(values), served_metrics()))
    for values in WRONG:
        try:
            render(values)
        except HelmError:
            continue
        raise AssertionError(f"the chart accepts the wrong values {values}")
    print(f"{len(WRONG)} wrong values are refused")
    assert BASE.read_text() == base(), "kustomize/base.yaml is not the output of the chart: run tests/deploy/chart.py --write"


main()
