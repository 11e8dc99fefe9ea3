package io.cachelet.hadoop;

import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** One line a reason and JVM: what is true of every read would otherwise fill an executor's log. */
final class OnceLog {
    private static final Logger LOG = LoggerFactory.getLogger("io.cachelet.hadoop");
    private static final int MOST_LINES = 1000;
    private static final Set<String> SAID = ConcurrentHashMap.newKeySet();

    private OnceLog() {}

    /** Says {@code line} unless something was said under the same key. */
    static void warn(String key, String line) {
        if (SAID.size() < MOST_LINES && SAID.add(key)) {
            LOG.warn(line);
        }
    }

    /** As {@link #warn}, for what the user asked for. */
    static void info(String key, String line) {
        if (SAID.size() < MOST_LINES && SAID.add(key)) {
            LOG.info(line);
        }
    }
}
