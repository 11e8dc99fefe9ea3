package io.cachelet.spark;

import io.cachelet.locality.Placement;
import io.fabric8.kubernetes.api.model.Affinity;
import io.fabric8.kubernetes.api.model.Container;
import io.fabric8.kubernetes.api.model.EnvVar;
import io.fabric8.kubernetes.api.model.EnvVarSource;
import io.fabric8.kubernetes.api.model.HostPathVolumeSource;
import io.fabric8.kubernetes.api.model.NodeAffinity;
import io.fabric8.kubernetes.api.model.NodeSelector;
import io.fabric8.kubernetes.api.model.NodeSelectorRequirement;
import io.fabric8.kubernetes.api.model.NodeSelectorTerm;
import io.fabric8.kubernetes.api.model.ObjectFieldSelector;
import io.fabric8.kubernetes.api.model.PersistentVolumeClaimVolumeSource;
import io.fabric8.kubernetes.api.model.Pod;
import io.fabric8.kubernetes.api.model.PodSecurityContext;
import io.fabric8.kubernetes.api.model.PodSpec;
import io.fabric8.kubernetes.api.model.PreferredSchedulingTerm;
import io.fabric8.kubernetes.api.model.Volume;
import io.fabric8.kubernetes.api.model.VolumeMount;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import org.apache.spark.SparkConf;

/**
 * The changes to one executor pod. Everything is worked out before anything is set, so that a failure changes nothing;
 * what the pod has already is added to, never replaced.
 *
 * <p>Only constructors and setters of the Kubernetes model: its fluent builders differ between the versions that come
 * with Spark 3.5 and 4, to the point that a class compiled with one fails to link with the other.
 */
final class ExecutorPod {
    static final String HOST_PATH = "spark.cachelet.socket.hostPath";
    static final String CLAIM = "spark.cachelet.socket.claim";
    static final String VOLUME = "spark.cachelet.socket.volume";
    static final String GROUP = "spark.cachelet.socket.group";

    static final String VOLUME_NAME = "cachelet-socket";
    static final String MOUNT_PATH = "/var/run/cachelet";

    /** A preference names no more nodes than this, in terms by how much they hold. */
    static final int MAX_NODES = 20;

    private static final long DEFAULT_GROUP = 4242;
    private static final String VIRTUAL = "virtual-kubelet";
    /** Weights of nodes that hold at least two thirds, at least one third, or less of what the first node holds. */
    private static final int[] WEIGHTS = {100, 60, 30};

    private static final int NOT_VIRTUAL_WEIGHT = 50;

    private final String hostPath;
    private final String claim;
    private final boolean withVolume;
    private final long group;

    /**
     * As the settings say.
     *
     * @throws IllegalArgumentException if one cannot be understood
     */
    ExecutorPod(SparkConf conf) {
        hostPath = conf.get(HOST_PATH, MOUNT_PATH);
        claim = conf.get(CLAIM, "");
        String volume = conf.get(VOLUME, "auto");
        if (!volume.equals("auto") && !volume.equals("none")) {
            throw new IllegalArgumentException(VOLUME + " is '" + volume + "': set it to auto or none");
        }
        withVolume = volume.equals("auto");
        group = conf.getLong(GROUP, DEFAULT_GROUP);
    }

    void configure(Pod pod, Container container, List<Placement.NodeBytes> nodes) {
        PodSpec spec = pod.getSpec() == null ? new PodSpec() : pod.getSpec();
        if (isForVirtualNodes(pod, spec)) {
            // Each of their pods is a machine of its own, with no daemon beside it, and one that refuses hostPath
            // volumes.
            return;
        }
        List<Volume> volumes = copy(spec.getVolumes());
        List<VolumeMount> mounts = copy(container.getVolumeMounts());
        List<EnvVar> env = copy(container.getEnv());
        PodSecurityContext security = spec.getSecurityContext();
        List<Long> groups = copy(security == null ? null : security.getSupplementalGroups());
        if (withVolume) {
            boolean mounted = mounts.stream().anyMatch(mount -> MOUNT_PATH.equals(mount.getMountPath()));
            if (!mounted) {
                if (volumes.stream().noneMatch(volume -> VOLUME_NAME.equals(volume.getName()))) {
                    volumes.add(volume());
                }
                mounts.add(mount());
            }
            addIfAbsent(env, variable("CACHELET_SOCKET_DIR", MOUNT_PATH));
            if (!groups.contains(group)) {
                groups.add(group);
            }
        }
        addIfAbsent(env, nodeName());
        Affinity affinity = spec.getAffinity();
        NodeAffinity nodeAffinity = affinity == null ? null : affinity.getNodeAffinity();
        List<PreferredSchedulingTerm> preferred =
                copy(nodeAffinity == null ? null : nodeAffinity.getPreferredDuringSchedulingIgnoredDuringExecution());
        preferred.addAll(holders(nodes));
        preferred.add(preference(NOT_VIRTUAL_WEIGHT, "type", "NotIn", Collections.singletonList(VIRTUAL)));

        // From here on nothing fails.
        pod.setSpec(spec);
        spec.setVolumes(volumes);
        container.setVolumeMounts(mounts);
        container.setEnv(env);
        if (!groups.isEmpty()) {
            security = security == null ? new PodSecurityContext() : security;
            security.setSupplementalGroups(groups);
            spec.setSecurityContext(security);
        }
        affinity = affinity == null ? new Affinity() : affinity;
        nodeAffinity = nodeAffinity == null ? new NodeAffinity() : nodeAffinity;
        nodeAffinity.setPreferredDuringSchedulingIgnoredDuringExecution(preferred);
        affinity.setNodeAffinity(nodeAffinity);
        spec.setAffinity(affinity);
    }

    /**
     * Whether the pod can only run on a virtual node. One that merely tolerates them may run anywhere; for it
     * {@code spark.cachelet.socket.volume=none} is there.
     */
    private static boolean isForVirtualNodes(Pod pod, PodSpec spec) {
        boolean labelled = pod.getMetadata() != null
                && pod.getMetadata().getLabels() != null
                && "true".equals(pod.getMetadata().getLabels().get("alibabacloud.com/eci"));
        boolean selected = spec.getNodeSelector() != null
                && VIRTUAL.equals(spec.getNodeSelector().get("type"));
        return labelled || selected || requiresVirtualNodes(spec.getAffinity());
    }

    private static boolean requiresVirtualNodes(Affinity affinity) {
        NodeSelector required = affinity == null || affinity.getNodeAffinity() == null
                ? null
                : affinity.getNodeAffinity().getRequiredDuringSchedulingIgnoredDuringExecution();
        if (required == null
                || required.getNodeSelectorTerms() == null
                || required.getNodeSelectorTerms().isEmpty()) {
            return false;
        }
        // One term of several is enough for the scheduler.
        return required.getNodeSelectorTerms().stream()
                .allMatch(term -> term.getMatchExpressions() != null
                        && term.getMatchExpressions().stream()
                                .anyMatch(expression -> "type".equals(expression.getKey())
                                        && "In".equals(expression.getOperator())
                                        && Collections.singletonList(VIRTUAL).equals(expression.getValues())));
    }

    private Volume volume() {
        Volume volume = new Volume();
        volume.setName(VOLUME_NAME);
        if (claim.isEmpty()) {
            HostPathVolumeSource source = new HostPathVolumeSource();
            source.setPath(hostPath);
            // The executor may be there before the daemon is.
            source.setType("DirectoryOrCreate");
            volume.setHostPath(source);
        } else {
            PersistentVolumeClaimVolumeSource source = new PersistentVolumeClaimVolumeSource();
            source.setClaimName(claim);
            source.setReadOnly(true);
            volume.setPersistentVolumeClaim(source);
        }
        return volume;
    }

    private static VolumeMount mount() {
        VolumeMount mount = new VolumeMount();
        mount.setName(VOLUME_NAME);
        mount.setMountPath(MOUNT_PATH);
        mount.setReadOnly(true);
        return mount;
    }

    private static EnvVar variable(String name, String value) {
        EnvVar variable = new EnvVar();
        variable.setName(name);
        variable.setValue(value);
        return variable;
    }

    private static EnvVar nodeName() {
        ObjectFieldSelector field = new ObjectFieldSelector();
        field.setApiVersion("v1");
        field.setFieldPath("spec.nodeName");
        EnvVarSource source = new EnvVarSource();
        source.setFieldRef(field);
        EnvVar variable = new EnvVar();
        variable.setName("NODE_NAME");
        variable.setValueFrom(source);
        return variable;
    }

    private static void addIfAbsent(List<EnvVar> env, EnvVar variable) {
        if (env.stream().noneMatch(present -> variable.getName().equals(present.getName()))) {
            env.add(variable);
        }
    }

    /** A preference for each weight that has nodes. */
    private static List<PreferredSchedulingTerm> holders(List<Placement.NodeBytes> nodes) {
        List<List<String>> byWeight = Arrays.asList(new ArrayList<>(), new ArrayList<>(), new ArrayList<>());
        for (Placement.NodeBytes node : nodes.subList(0, Math.min(nodes.size(), MAX_NODES))) {
            double share = (double) node.bytes / Math.max(1, nodes.get(0).bytes);
            byWeight.get(share >= 2 / 3.0 ? 0 : share >= 1 / 3.0 ? 1 : 2).add(node.node);
        }
        List<PreferredSchedulingTerm> terms = new ArrayList<>();
        for (int i = 0; i < WEIGHTS.length; i++) {
            if (!byWeight.get(i).isEmpty()) {
                terms.add(preference(WEIGHTS[i], "kubernetes.io/hostname", "In", byWeight.get(i)));
            }
        }
        return terms;
    }

    private static PreferredSchedulingTerm preference(int weight, String key, String operator, List<String> values) {
        NodeSelectorRequirement requirement = new NodeSelectorRequirement();
        requirement.setKey(key);
        requirement.setOperator(operator);
        requirement.setValues(new ArrayList<>(values));
        NodeSelectorTerm term = new NodeSelectorTerm();
        term.setMatchExpressions(new ArrayList<>(Collections.singletonList(requirement)));
        PreferredSchedulingTerm preferred = new PreferredSchedulingTerm();
        preferred.setWeight(weight);
        preferred.setPreference(term);
        return preferred;
    }

    private static <T> List<T> copy(List<T> list) {
        return list == null ? new ArrayList<>() : new ArrayList<>(list);
    }
}
