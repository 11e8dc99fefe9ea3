"""Where a node is in the network, and the files that configure it."""

# The control plane, and this machine, on the bridge.
API, HOST = "10.88.0.1", "10.88.0.254"
SERVICES, PODS = "10.96.0.0/16", "10.244.0.0/16"


def node_ip(number):
    return f"10.88.0.{10 + number}"


def pod_range(number):
    return f"10.244.{number}.0/24"


def node_files(name, number, dir, pki):
    """The configuration of a node."""
    ip = node_ip(number)
    return {
        "resolv.conf": f"nameserver {API}\n",
        "hosts": f"127.0.0.1 localhost\n{ip} {name}\n",
        "cni/10-bridge.conflist": f"""{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
 {{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "mtu": 1500, "ipam": {{"type": "host-local",
  "dataDir": "/var/lib/cni", "ranges": [[{{"subnet": "{pod_range(number)}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
 {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
""",
        # Without the right to change its own score, runc could start no sandbox unless scores are left alone.
        "containerd.toml": f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
""",
        "kubelet.yaml": f"""apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.crt}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki}/{name}.crt
tlsPrivateKeyFile: {pki}/{name}.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
address: {ip}
healthzBindAddress: 127.0.0.1
cgroupDriver: cgroupfs
clusterDNS: [{API}]
clusterDomain: cluster.local
resolvConf: {dir}/resolv.conf
failSwapOn: false
imageGCHighThresholdPercent: 100
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}}
syncFrequency: 10s
nodeStatusUpdateFrequency: 5s
registryPullQPS: 0
serializeImagePulls: false
maxPods: 60
""",
        "proxy.yaml": f"""apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {{kubeconfig: {pki}/proxy.conf}}
mode: iptables
clusterCIDR: {PODS}
hostnameOverride: {name}
bindAddress: {ip}
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
""",
    }
