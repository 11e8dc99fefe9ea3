package io.cachelet.hadoop;

import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import org.apache.hadoop.fs.GlobPattern;
import org.apache.hadoop.fs.Path;

/**
 * How old an answer of the origin about a file may be, by its path. A pure function of the settings.
 *
 * <p>Never more than zero for names that are overwritten by design: log and marker files, table metadata, checkpoints.
 */
final class Freshness {
    private static final long WRITE_ONCE_NANOS = Duration.ofHours(24).toNanos();

    private final List<Prefix> prefixes = new ArrayList<>();
    private final List<GlobPattern> writeOnce = new ArrayList<>();

    Freshness(String maxStaleness, String writeOncePatterns) {
        for (String entry : entries(maxStaleness)) {
            int equals = entry.lastIndexOf('=');
            if (equals < 0 || !entry.substring(0, equals).contains("://")) {
                throw ReadSettings.bad(
                        SettingKeys.MAX_STALENESS,
                        entry,
                        "is not uri-prefix=duration; write for example s3a://lake/tpch/=60s");
            }
            long nanos = ReadSettings.duration(
                            SettingKeys.MAX_STALENESS,
                            entry.substring(equals + 1).trim())
                    .toNanos();
            prefixes.add(new Prefix(entry.substring(0, equals).trim(), nanos));
        }
        prefixes.sort((one, other) -> other.uri.length() - one.uri.length());
        for (String pattern : entries(writeOncePatterns)) {
            if (!pattern.contains("://")) {
                throw ReadSettings.bad(
                        SettingKeys.WRITE_ONCE,
                        pattern,
                        "is no pattern for URIs; write for example s3a://lake/*.parquet");
            }
            try {
                writeOnce.add(new GlobPattern(pattern));
            } catch (RuntimeException e) {
                throw ReadSettings.bad(SettingKeys.WRITE_ONCE, pattern, "is no glob pattern: " + e.getMessage());
            }
        }
    }

    /** Whether some path may be answered from memory. */
    boolean isStrict() {
        return prefixes.isEmpty() && writeOnce.isEmpty();
    }

    /** How old an answer about {@code path} may be, in nanoseconds; 0: it must be asked for. */
    long maxAgeNanos(Path path) {
        if (isStrict() || changesByDesign(path)) {
            return 0;
        }
        String uri = path.toString();
        for (GlobPattern pattern : writeOnce) {
            if (pattern.matches(uri)) {
                return WRITE_ONCE_NANOS;
            }
        }
        for (Prefix prefix : prefixes) {
            if (uri.startsWith(prefix.uri)) {
                return prefix.nanos;
            }
        }
        return 0;
    }

    /** Whether a path has a part whose files are overwritten, or polled for, in the ordinary course of things. */
    static boolean changesByDesign(Path path) {
        for (String part : path.toUri().getPath().split("/")) {
            if (part.isEmpty()) {
                continue;
            }
            String name = part.toLowerCase(Locale.ROOT);
            if (name.charAt(0) == '_' || name.charAt(0) == '.' || name.startsWith("checkpoint")) {
                return true;
            }
            switch (name) {
                case "metadata":
                case "offsets":
                case "commits":
                case "sources":
                case "state":
                    return true;
                default:
                    break;
            }
        }
        return false;
    }

    private static List<String> entries(String list) {
        List<String> entries = new ArrayList<>();
        for (String entry : list.split(",")) {
            if (!entry.trim().isEmpty()) {
                entries.add(entry.trim());
            }
        }
        return entries;
    }

    private static final class Prefix {
        final String uri;
        final long nanos;

        Prefix(String uri, long nanos) {
            this.uri = uri;
            this.nanos = nanos;
        }
    }
}
