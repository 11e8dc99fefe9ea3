package io.cachelet.spark;

import io.cachelet.locality.Placement;
import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.spark.deploy.k8s.KubernetesExecutorConf;
import org.apache.spark.deploy.k8s.SparkPod;
import org.apache.spark.deploy.k8s.features.KubernetesExecutorCustomFeatureConfigStep;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * What executor pods need on Kubernetes: the daemon's socket, permission to use it, the node's name, and a preference
 * for nodes that hold what the application wants to read.
 *
 * <p>{@code spark.kubernetes.executor.pod.featureSteps=io.cachelet.spark.CacheletFeatureStep}; the plug-in adds it.
 * Spark makes an instance for each pod and calls it on the thread that requests pods: it answers from memory and never
 * throws. Where something fails, the pod stays as it was.
 */
public final class CacheletFeatureStep implements KubernetesExecutorCustomFeatureConfigStep {
    private static final Logger LOG = LoggerFactory.getLogger(CacheletFeatureStep.class);
    private static final AtomicBoolean FAILED = new AtomicBoolean();

    private ExecutorPod step;

    /** For Spark. */
    public CacheletFeatureStep() {}

    @Override
    public void init(KubernetesExecutorConf conf) {
        try {
            // The step may be named in settings that many share, and switched off for one application.
            if (conf.sparkConf().getBoolean(ApplicationSettings.FEATURE_STEP_ENABLED, true)) {
                step = new ExecutorPod(conf.sparkConf());
            }
        } catch (RuntimeException | LinkageError e) {
            failed(e);
        }
    }

    @Override
    public SparkPod configurePod(SparkPod pod) {
        try {
            if (step != null) {
                step.configure(pod.pod(), pod.container(), Placement.get().nodes());
            }
        } catch (RuntimeException | LinkageError e) {
            failed(e);
        }
        return pod;
    }

    private static void failed(Throwable e) {
        if (FAILED.compareAndSet(false, true)) {
            LOG.warn("executor pods are left as they are, and their executors read from the origin", e);
        }
    }
}
