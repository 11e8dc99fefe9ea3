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

    /** The first executors are requested right after the plug-in is set up; for their sake it waits this long. */
    private static final long WAIT_MILLIS = 1_000;

    private static final int MAX_FILES = 10_000;
    private static final long LOOK_MILLIS = 50;
    private static final int MAX_LOOKS = 1_200;

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
        Thread thread = new Thread(
                () -> {
                    try {
                        for (String path : paths.split(",")) {
                            list(path.trim(), conf);
                        }
                        awaitService();
                        Placement.get().refresh();
                    } catch (InterruptedException e) {
                        Thread.currentThread().interrupt();
                    } finally {
                        done.countDown();
                    }
                },
                "cachelet-placement-paths");
        thread.setDaemon(true);
        thread.start();
        try {
            done.await(WAIT_MILLIS, TimeUnit.MILLISECONDS);
        } catch (InterruptedException e) {
            Thread.currentThread().interrupt();
        }
    }

    /** The driver learns the service's address from its own node's daemon, or from the first executor. */
    private static void awaitService() throws InterruptedException {
        for (int i = 0;
                i < MAX_LOOKS && ExecutorDirectory.get().serviceAddress().isEmpty();
                i++) {
            Thread.sleep(LOOK_MILLIS);
        }
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
