package io.cachelet.spark;

import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.TreeMap;

/**
 * What one JVM, or several together, have read so far, by name. Immutable.
 *
 * <p>A counter is absent while it is 0. One that could not be measured is {@link #UNKNOWN}, and so is every sum and
 * difference with it.
 */
final class Counters {
    /** Read from files of this node's cache, through held descriptors, or sent by this node's daemon. */
    static final String LOCAL = "local";
    /** Of {@link #LOCAL}: sent by the daemon over its socket instead of read from a descriptor. */
    static final String INLINE = "inline";
    /** Fetched by daemons from other nodes' daemons, on behalf of readers here. */
    static final String PEER = "peer";
    /** Fetched from the object store: by daemons on behalf of readers here, and by readers that went there directly. */
    static final String ORIGIN = "origin";
    /** Of {@link #ORIGIN}: read by the JVM itself, past the daemon. */
    static final String DIRECT = "direct";
    /** Reads that went to the object store although Cachelet was asked first; more of them by reason, after a dot. */
    static final String FALLBACKS = "fallbacks";

    static final long UNKNOWN = Long.MIN_VALUE;
    static final Counters NONE = new Counters(Collections.emptyMap());

    private final Map<String, Long> values;

    private Counters(Map<String, Long> values) {
        this.values = values;
    }

    static Counters of(Map<String, Long> values) {
        return new Counters(new TreeMap<>(values));
    }

    /** What {@link #toMessage} made; anything else is nothing. */
    static Counters fromMessage(Object message) {
        Map<String, Long> values = new TreeMap<>();
        if (message instanceof Map) {
            ((Map<?, ?>) message).forEach((name, value) -> {
                if (name instanceof String && value instanceof Long) {
                    values.put((String) name, (Long) value);
                }
            });
        }
        return new Counters(values);
    }

    /** Made of classes of the JDK alone, which any class loader of any JVM knows. */
    HashMap<String, Long> toMessage() {
        return new HashMap<>(values);
    }

    long get(String name) {
        return values.getOrDefault(name, 0L);
    }

    /** The counters whose name begins with that, and a dot, by what follows it. */
    Map<String, Long> below(String name) {
        Map<String, Long> below = new TreeMap<>();
        values.forEach((key, value) -> {
            if (key.startsWith(name + ".") && value != 0) {
                below.put(key.substring(name.length() + 1), value);
            }
        });
        return below;
    }

    Counters plus(Counters other) {
        return combined(other, 1);
    }

    Counters minus(Counters other) {
        return combined(other, -1);
    }

    private Counters combined(Counters other, int sign) {
        Map<String, Long> sum = new TreeMap<>(values);
        other.values.forEach((name, value) -> sum.merge(
                name,
                value == UNKNOWN ? UNKNOWN : sign * value,
                (a, b) -> a == UNKNOWN || b == UNKNOWN ? UNKNOWN : a + b));
        return new Counters(sum);
    }

    @Override
    public boolean equals(Object other) {
        return other instanceof Counters && ((Counters) other).values.equals(values);
    }

    @Override
    public int hashCode() {
        return values.hashCode();
    }

    @Override
    public String toString() {
        return values.toString();
    }
}
