package io.cachelet.spark;

import io.cachelet.locality.ExecutorDirectory;
import io.cachelet.locality.Placement;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.EtagSource;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.LocatedFileStatus;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.RemoteIterator;
import org.apache.spark.SparkConf;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The files below {@code spark.cachelet.placement.paths}: executors are wanted where they are cached. */
final class PlacementPaths {
    static final String PATHS = "spark.cachelet.placement.paths";

    private static final Logger LOG = LoggerFactory.getLogger(PlacementPaths.class);

    /**
     * The first executors are requested right after the plug-in is set up; for their sake it waits this long. Who names
     * paths wants executors near them, and the first listing of a file system that nobody has used yet takes seconds.
     */
    private static final long WAIT_MILLIS = 10_000;

    /** It does not wait any longer for a service that only an executor can name. */
    private static final long SERVICE_MILLIS = 1_000;

    /** Nor does the thread, in the end. */
    private static final long LAST_MILLIS = 60_000;

    private static final int MAX_FILES = 10_000;
    private static final long LOOK_MILLIS = 50;

    private PlacementPaths() {}

    /** Lists them in the background, and asks where they are. Does nothing but on Kubernetes. */
    static void start(SparkConf spark, Configuration hadoop) {
        if (!ApplicationSettings.onKubernetes(spark)
                || !spark.getBoolean(ApplicationSettings.FEATURE_STEP_ENABLED, true)) {
            return;
        }
        Placement.get().enable();
        String paths = spark.get(PATHS, "").trim();
        if (paths.isEmpty()) {
            return;
        }
        CountDownLatch done = new CountDownLatch(1);
        Configuration conf = new Configuration(hadoop);
        Thread thread = new Thread(() -> look(paths, conf, done), "cachelet-placement-paths");
        thread.setDaemon(true);
        thread.start();
        try {
            if (!done.await(WAIT_MILLIS, TimeUnit.MILLISECONDS)) {
                LOG.warn(
                        "{} take more than {} s to be looked up; the first executors are placed without them",
                        PATHS,
                        TimeUnit.MILLISECONDS.toSeconds(WAIT_MILLIS));
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    private static void look(String paths, Configuration conf, CountDownLatch done) {
        try {
            boolean known = isServiceKnownWithin(SERVICE_MILLIS);
            if (!known) {
                LOG.info(
                        "the first executors are placed without {}: nobody has told yet where the locality service is. Set {},"
                                + " or mount the daemon's socket into the driver's pod.",
                        PATHS,
                        DriverSide.SERVICE);
                done.countDown();
            }
            for (String path : paths.split(",")) {
                list(path.trim(), conf);
            }
            if (known || isServiceKnownWithin(LAST_MILLIS)) {
                Placement.get().refresh();
                LOG.info("executors are wanted on {}, for {}", Placement.get().nodes(), paths);
            }
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        } finally {
            done.countDown();
        }
    }

    /** The driver learns the service's address from its own node's daemon, or from the first executor. */
    private static boolean isServiceKnownWithin(long millis) throws InterruptedException {
        for (long waited = 0; waited < millis; waited += LOOK_MILLIS) {
            if (!ExecutorDirectory.get().serviceAddress().isEmpty()) {
                return true;
            }
            Thread.sleep(LOOK_MILLIS);
        }
        return false;
    }

    private static void list(String name, Configuration conf) {
        if (name.isEmpty()) {
            return;
        }
        try {
            Path path = new Path(name);
            FileSystem fileSystem = path.getFileSystem(conf);
            RemoteIterator<LocatedFileStatus> files = fileSystem.listFiles(path, true);
            for (int i = 0; i < MAX_FILES && files.hasNext(); i++) {
                LocatedFileStatus file = files.next();
                String etag = file instanceof EtagSource ? ((EtagSource) file).getEtag() : null;
                Placement.get().configured(file.getPath().toString(), etag, file.getLen());
            }
        } catch (FileNotFoundException e) {
            LOG.warn("{} names {}, which is not there", PATHS, name);
        } catch (IOException | RuntimeException e) {
            LOG.warn("cannot list {} of {}; executors are placed without it", name, PATHS, e);
        }
    }
}
