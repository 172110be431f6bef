# Sourced by run. Defines buildah and podman with their own store of images, for machines without a Docker engine. Needs root.
store=$root/target/container
mkdir -p "$store"
# Inside a container, the kernel refuses the default limits.
cat > "$store/containers.conf" << 'CONF'
[containers]
default_ulimits = ["nofile=8192:8192", "nproc=4096:4096"]
[network]
network_backend = "netavark"
CONF
export CONTAINERS_CONF=$store/containers.conf
storage=(--root "$store/images" --runroot "$store/run" --storage-driver overlay)
buildah() { command buildah "${storage[@]}" "$@"; }
# podman warns that no systemd starts the health checks. The test runs them itself, so the warning is removed.
podman() {
  command podman "${storage[@]}" --cgroup-manager cgroupfs --runtime runc "$@" 2> >(grep -v 'systemd connection' >&2)
}
