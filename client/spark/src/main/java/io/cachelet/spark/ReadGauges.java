package io.cachelet.spark;

import com.codahale.metrics.Gauge;
import com.codahale.metrics.MetricRegistry;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Supplier;

/** Counters as Spark metrics: bytes by source, and fallbacks by reason. */
final class ReadGauges {
    private static final String[] BYTES = {
        Counters.LOCAL, Counters.INLINE, Counters.PEER, Counters.ORIGIN, Counters.DIRECT
    };

    private ReadGauges() {}

    /**
     * Registers {@code bytes.<source>} and {@code fallbacks.total}; {@code fallbacks.<reason>} follows when a reason
     * occurs first. A counter that could not be measured is -1.
     */
    static void register(MetricRegistry registry, Supplier<Counters> counters) {
        for (String source : BYTES) {
            registry.register("bytes." + source, (Gauge<Long>)
                    () -> measured(counters.get().get(source)));
        }
        Set<String> reasons = ConcurrentHashMap.newKeySet();
        registry.register("fallbacks.total", (Gauge<Long>) () -> {
            Counters now = counters.get();
            for (String reason : now.below(Counters.FALLBACKS).keySet()) {
                if (reasons.add(reason)) {
                    registry.register("fallbacks." + reason, (Gauge<Long>)
                            () -> measured(counters.get().get(Counters.FALLBACKS + "." + reason)));
                }
            }
            return measured(now.get(Counters.FALLBACKS));
        });
    }

    private static long measured(long value) {
        return value == Counters.UNKNOWN ? -1 : value;
    }
}
