package io.cachelet.hadoop;

import java.time.Duration;
import java.util.Locale;
import org.apache.hadoop.conf.Configuration;

/** What {@link SettingKeys} come to in one configuration, checked. */
final class ReadSettings {
    private static final String DEFAULT_SOCKET_DIR = "/var/run/cachelet";

    final boolean enabled;
    final String socketDir;
    final String nativeDir;
    final String nativePath;
    final Freshness freshness;
    final long requestTimeoutMinMillis;
    final long bypassPeriodMillis;
    final boolean verifyReads;
    final long readaheadBytes;

    /**
     * Reads the settings.
     *
     * @throws IllegalArgumentException naming the key and the value that cannot be understood
     */
    ReadSettings(Configuration conf) {
        enabled = flag(conf, SettingKeys.ENABLED, true);
        verifyReads = flag(conf, SettingKeys.VERIFY_READS, false);
        String fromEnvironment = System.getenv("CACHELET_SOCKET_DIR");
        socketDir = conf.getTrimmed(
                SettingKeys.SOCKET_DIR,
                fromEnvironment == null || fromEnvironment.isEmpty() ? DEFAULT_SOCKET_DIR : fromEnvironment);
        nativeDir = conf.getTrimmed(SettingKeys.NATIVE_DIR);
        nativePath = conf.getTrimmed(SettingKeys.NATIVE_PATH);
        freshness = new Freshness(
                conf.getTrimmed(SettingKeys.MAX_STALENESS, ""), conf.getTrimmed(SettingKeys.WRITE_ONCE, ""));
        requestTimeoutMinMillis =
                duration(conf, SettingKeys.REQUEST_TIMEOUT_MIN, "500ms").toMillis();
        if (requestTimeoutMinMillis < 1) {
            throw bad(SettingKeys.REQUEST_TIMEOUT_MIN, conf.get(SettingKeys.REQUEST_TIMEOUT_MIN), "is too short");
        }
        bypassPeriodMillis = duration(conf, SettingKeys.BYPASS_PERIOD, "30s").toMillis();
        readaheadBytes = bytes(conf, SettingKeys.READAHEAD, 8 << 20);
    }

    private static boolean flag(Configuration conf, String key, boolean otherwise) {
        String value = conf.getTrimmed(key, "").toLowerCase(Locale.ROOT);
        switch (value) {
            case "":
                return otherwise;
            case "true":
                return true;
            case "false":
                return false;
            default:
                throw bad(key, value, "is neither true nor false");
        }
    }

    private static long bytes(Configuration conf, String key, long otherwise) {
        try {
            long bytes = conf.getLongBytes(key, otherwise);
            if (bytes >= 0) {
                return bytes;
            }
        } catch (IllegalArgumentException e) {
            // Said below, with the key.
        }
        throw bad(key, conf.get(key), "is no number of bytes; write for example 8m");
    }

    private static Duration duration(Configuration conf, String key, String otherwise) {
        return duration(key, conf.getTrimmed(key, otherwise));
    }

    /** Parses {@code 500ms}, {@code 60s}, {@code 5m}, {@code 24h} or {@code 7d}. */
    static Duration duration(String key, String text) {
        int digits = 0;
        while (digits < text.length() && Character.isDigit(text.charAt(digits))) {
            digits++;
        }
        try {
            long count = Long.parseLong(text.substring(0, digits));
            switch (text.substring(digits).trim()) {
                case "ms":
                    return Duration.ofMillis(count);
                case "s":
                    return Duration.ofSeconds(count);
                case "m":
                    return Duration.ofMinutes(count);
                case "h":
                    return Duration.ofHours(count);
                case "d":
                    return Duration.ofDays(count);
                default:
                    break;
            }
        } catch (NumberFormatException | ArithmeticException e) {
            // Said below, with the key.
        }
        throw bad(key, text, "is no duration; write a number and ms, s, m, h or d, for example 60s");
    }

    static IllegalArgumentException bad(String key, String value, String why) {
        return new IllegalArgumentException(key + ": '" + value + "' " + why);
    }
}
