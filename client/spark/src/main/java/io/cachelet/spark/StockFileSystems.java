package io.cachelet.spark;

import java.lang.reflect.Field;
import java.util.ArrayList;
import java.util.Map;
import java.util.Set;
import java.util.TreeSet;
import org.apache.hadoop.fs.FileSystem;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Buckets that this JVM reads past Cachelet, because Hadoop had made and cached a file system for them before the
 * settings were there: for the application's main file, its jars, or an event log.
 *
 * <p>Hadoop shows its cache to nobody, so it is looked at by reflection. Where that fails, nothing is said.
 */
final class StockFileSystems {
    private static final Logger LOG = LoggerFactory.getLogger(StockFileSystems.class);

    private static volatile boolean blind;

    private StockFileSystems() {}

    /** As {@code s3a://bucket}. */
    static Set<String> buckets() {
        Set<String> buckets = new TreeSet<>();
        if (!blind) {
            try {
                for (FileSystem fileSystem : cached()) {
                    String scheme = fileSystem.getUri().getScheme();
                    boolean ours = fileSystem.getClass().getName().startsWith("io.cachelet.");
                    if (!ours && ("s3a".equals(scheme) || "oss".equals(scheme))) {
                        buckets.add(scheme + "://" + fileSystem.getUri().getAuthority());
                    }
                }
            } catch (ReflectiveOperationException | RuntimeException e) {
                blind = true;
                LOG.debug("cannot see which file systems Hadoop has cached", e);
            }
        }
        return buckets;
    }

    private static ArrayList<FileSystem> cached() throws ReflectiveOperationException {
        Field cacheField = FileSystem.class.getDeclaredField("CACHE");
        cacheField.setAccessible(true);
        Object cache = cacheField.get(null);
        Field mapField = cache.getClass().getDeclaredField("map");
        mapField.setAccessible(true);
        ArrayList<FileSystem> fileSystems = new ArrayList<>();
        // Hadoop's own lock on it.
        synchronized (cache) {
            for (Object fileSystem : ((Map<?, ?>) mapField.get(cache)).values()) {
                fileSystems.add((FileSystem) fileSystem);
            }
        }
        return fileSystems;
    }
}
