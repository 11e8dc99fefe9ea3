package io.cachelet.spark;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;
import static org.junit.Assert.assertNotNull;
import static org.junit.Assert.assertNull;
import static org.junit.Assert.assertTrue;

import io.cachelet.locality.Placement;
import io.fabric8.kubernetes.api.model.Affinity;
import io.fabric8.kubernetes.api.model.Container;
import io.fabric8.kubernetes.api.model.EnvVar;
import io.fabric8.kubernetes.api.model.NodeAffinity;
import io.fabric8.kubernetes.api.model.NodeSelector;
import io.fabric8.kubernetes.api.model.NodeSelectorRequirement;
import io.fabric8.kubernetes.api.model.NodeSelectorTerm;
import io.fabric8.kubernetes.api.model.Pod;
import io.fabric8.kubernetes.api.model.PodSpec;
import io.fabric8.kubernetes.api.model.PreferredSchedulingTerm;
import io.fabric8.kubernetes.api.model.Volume;
import io.fabric8.kubernetes.api.model.VolumeMount;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.stream.Collectors;
import org.apache.spark.SecurityManager;
import org.apache.spark.SparkConf;
import org.apache.spark.deploy.k8s.KubernetesExecutorConf;
import org.apache.spark.deploy.k8s.SparkPod;
import org.apache.spark.resource.ResourceProfile$;
import org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBuilder;
import org.junit.Rule;
import org.junit.Test;
import org.junit.rules.TemporaryFolder;
import scala.Option;

/** Executor pods as Spark itself builds them, with the step among Spark's own. */
public class ExecutorPodTest {
    private static final String ECI_LABEL = "spark.kubernetes.executor.label.alibabacloud.com/eci";
    private static final String TYPE_SELECTOR = "spark.kubernetes.executor.node.selector.type";
    private static final String POD = "apiVersion: v1\nkind: Pod\nspec:\n";

    @Rule
    public final TemporaryFolder directory = new TemporaryFolder();

    private final SparkConf conf = new SparkConf(false)
            .set("spark.kubernetes.container.image", "spark")
            .set("spark.driver.host", "driver.local")
            .set("spark.kubernetes.executor.pod.featureSteps", CacheletFeatureStep.class.getName());

    private KubernetesExecutorConf executor() {
        return new KubernetesExecutorConf(conf, "app-1", "7", Option.empty(), 0);
    }

    private SparkPod build() {
        SecurityManager security =
                new SecurityManager(conf, Option.empty(), SecurityManager.$lessinit$greater$default$3());
        return new KubernetesExecutorBuilder()
                .buildFromFeatures(executor(), security, null, ResourceProfile$.MODULE$.getOrCreateDefaultProfile(conf))
                .pod();
    }

    /** A pod template, as users and operators give it. Spark reads it with a client that asks no cluster. */
    private SparkPod from(String spec) throws Exception {
        Pod template = io.fabric8.kubernetes.client.utils.Serialization.unmarshal(POD + spec, Pod.class);
        Container container = template.getSpec().getContainers().get(0);
        CacheletFeatureStep step = new CacheletFeatureStep();
        step.init(executor());
        return step.configurePod(new SparkPod(template, container));
    }

    private static Volume socketVolume(SparkPod pod) {
        return pod.pod().getSpec().getVolumes().stream()
                .filter(volume -> volume.getName().equals(ExecutorPod.VOLUME_NAME))
                .findFirst()
                .orElse(null);
    }

    private static EnvVar env(SparkPod pod, String name) {
        List<EnvVar> found = pod.container().getEnv().stream()
                .filter(variable -> variable.getName().equals(name))
                .collect(Collectors.toList());
        assertTrue(name + " is there once at most", found.size() <= 1);
        return found.isEmpty() ? null : found.get(0);
    }

    private static List<String> preferred(Pod pod) {
        return pod
                .getSpec()
                .getAffinity()
                .getNodeAffinity()
                .getPreferredDuringSchedulingIgnoredDuringExecution()
                .stream()
                .map(ExecutorPodTest::text)
                .collect(Collectors.toList());
    }

    private static String text(PreferredSchedulingTerm term) {
        NodeSelectorRequirement requirement =
                term.getPreference().getMatchExpressions().get(0);
        return term.getWeight() + " " + requirement.getKey() + " " + requirement.getOperator() + " "
                + requirement.getValues();
    }

    @Test
    public void switchedOffItChangesNothingAlthoughItIsNamed() {
        conf.set("spark.cachelet.featureStep.enabled", "false");
        SparkPod pod = build();
        assertNull(socketVolume(pod));
        assertNull(env(pod, "NODE_NAME"));
        assertNull(pod.pod().getSpec().getAffinity());
    }

    @Test
    public void aPodGetsTheSocketTheGroupAndTheNodesName() {
        SparkPod pod = build();
        Volume volume = socketVolume(pod);
        assertEquals("/var/run/cachelet", volume.getHostPath().getPath());
        assertEquals("DirectoryOrCreate", volume.getHostPath().getType());
        List<VolumeMount> mounts = pod.container().getVolumeMounts().stream()
                .filter(mount -> mount.getName().equals(ExecutorPod.VOLUME_NAME))
                .collect(Collectors.toList());
        assertEquals(1, mounts.size());
        assertEquals("/var/run/cachelet", mounts.get(0).getMountPath());
        assertTrue(mounts.get(0).getReadOnly());
        assertEquals(
                "spec.nodeName",
                env(pod, "NODE_NAME").getValueFrom().getFieldRef().getFieldPath());
        assertEquals("/var/run/cachelet", env(pod, "CACHELET_SOCKET_DIR").getValue());
        assertEquals(
                Collections.singletonList(4242L),
                pod.pod().getSpec().getSecurityContext().getSupplementalGroups());
        assertEquals(Collections.singletonList("50 type NotIn [virtual-kubelet]"), preferred(pod.pod()));
        assertNotNull("Spark's own steps are untouched", env(pod, "SPARK_EXECUTOR_ID"));
    }

    @Test
    public void settingsChooseAClaimAnotherPathAndAnotherGroup() {
        conf.set(ExecutorPod.HOST_PATH, "/srv/cachelet").set(ExecutorPod.GROUP, "99");
        SparkPod pod = build();
        assertEquals("/srv/cachelet", socketVolume(pod).getHostPath().getPath());
        assertEquals(
                Collections.singletonList(99L),
                pod.pod().getSpec().getSecurityContext().getSupplementalGroups());
        conf.set(ExecutorPod.CLAIM, "cachelet-socket-claim");
        pod = build();
        assertNull(socketVolume(pod).getHostPath());
        assertEquals(
                "cachelet-socket-claim",
                socketVolume(pod).getPersistentVolumeClaim().getClaimName());
        assertTrue(socketVolume(pod).getPersistentVolumeClaim().getReadOnly());
    }

    @Test
    public void affinityGroupsVolumesAndEnvironmentAreAddedToAndNeverReplaced() throws Exception {
        SparkPod pod = from("  securityContext:\n"
                + "    runAsUser: 185\n"
                + "    supplementalGroups: [7]\n"
                + "  affinity:\n"
                + "    podAntiAffinity:\n"
                + "      preferredDuringSchedulingIgnoredDuringExecution: []\n"
                + "    nodeAffinity:\n"
                + "      requiredDuringSchedulingIgnoredDuringExecution:\n"
                + "        nodeSelectorTerms:\n"
                + "        - matchExpressions: [{key: pool, operator: In, values: [spark]}]\n"
                + "      preferredDuringSchedulingIgnoredDuringExecution:\n"
                + "      - weight: 5\n"
                + "        preference:\n"
                + "          matchExpressions: [{key: disk, operator: In, values: [nvme]}]\n"
                + "  containers:\n"
                + "  - name: executor\n"
                + "    env: [{name: NODE_NAME, value: mine}]\n"
                + "    volumeMounts: [{name: data, mountPath: /data}]\n"
                + "  volumes: [{name: data, emptyDir: {}}]\n");
        PodSpec spec = pod.pod().getSpec();
        assertEquals(Arrays.asList(7L, 4242L), spec.getSecurityContext().getSupplementalGroups());
        assertEquals(Long.valueOf(185), spec.getSecurityContext().getRunAsUser());
        assertEquals("mine", env(pod, "NODE_NAME").getValue());
        assertNotNull(spec.getAffinity().getPodAntiAffinity());
        NodeSelector required =
                spec.getAffinity().getNodeAffinity().getRequiredDuringSchedulingIgnoredDuringExecution();
        assertEquals(
                "pool",
                required.getNodeSelectorTerms()
                        .get(0)
                        .getMatchExpressions()
                        .get(0)
                        .getKey());
        assertEquals(Arrays.asList("5 disk In [nvme]", "50 type NotIn [virtual-kubelet]"), preferred(pod.pod()));
        assertTrue(
                spec.getVolumes().stream().anyMatch(volume -> volume.getName().equals("data")));
        assertNotNull(socketVolume(pod));
    }

    @Test
    public void aPodThatMountsTheSocketItselfKeepsItsMount() throws Exception {
        SparkPod pod = from("  containers:\n"
                + "  - name: executor\n"
                + "    volumeMounts: [{name: mine, mountPath: /var/run/cachelet, readOnly: true}]\n"
                + "  volumes: [{name: mine, hostPath: {path: /x}}]\n");
        assertNull(socketVolume(pod));
        assertEquals(1, pod.container().getVolumeMounts().size());
    }

    @Test
    public void podsForVirtualNodesAreLeftAsTheyAre() throws Exception {
        conf.set(ECI_LABEL, "true");
        assertUntouched(build());
        conf.remove(ECI_LABEL);
        conf.set(TYPE_SELECTOR, "virtual-kubelet");
        assertUntouched(build());
        conf.remove(TYPE_SELECTOR);
        assertUntouched(from("  affinity:\n"
                + "    nodeAffinity:\n"
                + "      requiredDuringSchedulingIgnoredDuringExecution:\n"
                + "        nodeSelectorTerms:\n"
                + "        - matchExpressions: [{key: type, operator: In, values: [virtual-kubelet]}]\n"
                + "  containers: [{name: executor}]\n"));
    }

    private static void assertUntouched(SparkPod pod) {
        assertNull(socketVolume(pod));
        assertNull(env(pod, "NODE_NAME"));
        assertNull(env(pod, "CACHELET_SOCKET_DIR"));
        Affinity affinity = pod.pod().getSpec().getAffinity();
        assertTrue(affinity == null
                || affinity.getNodeAffinity()
                        .getPreferredDuringSchedulingIgnoredDuringExecution()
                        .isEmpty());
    }

    @Test
    public void aPodThatMerelyToleratesVirtualNodesGetsTheSocketUnlessToldOtherwise() throws Exception {
        String tolerant = "  tolerations: [{key: virtual-kubelet.io/provider, operator: Exists}]\n"
                + "  containers: [{name: executor}]\n";
        assertNotNull(socketVolume(from(tolerant)));
        conf.set(ExecutorPod.VOLUME, "none");
        SparkPod pod = from(tolerant);
        assertNull(socketVolume(pod));
        assertNull(env(pod, "CACHELET_SOCKET_DIR"));
        assertNotNull(env(pod, "NODE_NAME"));
        assertEquals(1, preferred(pod.pod()).size());
    }

    @Test
    public void aSettingThatMakesNoSenseLeavesThePodAsItIs() {
        conf.set(ExecutorPod.VOLUME, "everywhere");
        assertUntouched(build());
        conf.set(ExecutorPod.VOLUME, "auto").set(ExecutorPod.GROUP, "staff");
        assertUntouched(build());
    }

    @Test
    public void nodesArePreferredByWhatTheyHold() {
        List<Placement.NodeBytes> nodes = new ArrayList<>();
        nodes.add(new Placement.NodeBytes("a", 90));
        nodes.add(new Placement.NodeBytes("b", 60));
        nodes.add(new Placement.NodeBytes("c", 59));
        nodes.add(new Placement.NodeBytes("d", 30));
        nodes.add(new Placement.NodeBytes("e", 29));
        assertEquals(
                Arrays.asList(
                        "100 kubernetes.io/hostname In [a, b]",
                        "60 kubernetes.io/hostname In [c, d]",
                        "30 kubernetes.io/hostname In [e]",
                        "50 type NotIn [virtual-kubelet]"),
                terms(nodes));
    }

    @Test
    public void noMoreThanTwentyNodesAreNamed() {
        List<Placement.NodeBytes> nodes = new ArrayList<>();
        for (int i = 0; i < 100; i++) {
            nodes.add(new Placement.NodeBytes("node-" + i, 1000 - i));
        }
        String only = terms(nodes).get(0);
        assertTrue(only, only.contains("node-19]"));
        assertFalse(only, only.contains("node-20"));
    }

    private List<String> terms(List<Placement.NodeBytes> nodes) {
        Pod pod = new Pod();
        new ExecutorPod(conf).configure(pod, new Container(), nodes);
        return preferred(pod);
    }

    @Test
    public void aFailureHalfwayChangesNothing() {
        NodeSelectorTerm term = new NodeSelectorTerm();
        term.setMatchExpressions(Collections.singletonList(null));
        NodeSelector required = new NodeSelector();
        required.setNodeSelectorTerms(Collections.singletonList(term));
        NodeAffinity nodeAffinity = new NodeAffinity();
        nodeAffinity.setRequiredDuringSchedulingIgnoredDuringExecution(required);
        Affinity affinity = new Affinity();
        affinity.setNodeAffinity(nodeAffinity);
        PodSpec spec = new PodSpec();
        spec.setAffinity(affinity);
        Pod pod = new Pod();
        pod.setSpec(spec);
        Container container = new Container();
        String before = pod + " " + container;
        CacheletFeatureStep step = new CacheletFeatureStep();
        step.init(executor());
        assertNotNull(step.configurePod(new SparkPod(pod, container)));
        assertEquals(before, pod + " " + container);
    }
}
