package io.cachelet.spark;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import java.io.IOException;
import java.io.StringWriter;
import java.util.Locale;
import java.util.Map;

/** What one SQL execution, or the whole application, read and from where. For people and for programs. */
final class ExecutionSummary {
    /** The id of what sums up the whole application. */
    static final long APPLICATION = -1;

    private static final int MAX_DESCRIPTION = 100;

    private final long id;
    private final String description;
    private final long startMillis;
    private final long endMillis;
    private final Counters bytes;
    private final int readingTasks;
    private final int nodeLocalTasks;
    private final int cachedTasks;
    private final int sharedWith;
    private final int missingReports;

    ExecutionSummary(
            long id,
            String description,
            long startMillis,
            long endMillis,
            Counters bytes,
            int readingTasks,
            int nodeLocalTasks,
            int cachedTasks,
            int sharedWith,
            int missingReports) {
        this.id = id;
        String line =
                description == null ? "" : description.replaceAll("\\s+", " ").trim();
        this.description = line.length() > MAX_DESCRIPTION ? line.substring(0, MAX_DESCRIPTION) + "..." : line;
        this.startMillis = startMillis;
        this.endMillis = endMillis;
        this.bytes = bytes;
        this.readingTasks = readingTasks;
        this.nodeLocalTasks = nodeLocalTasks;
        this.cachedTasks = cachedTasks;
        this.sharedWith = sharedWith;
        this.missingReports = missingReports;
    }

    /** One line for the log. */
    String toLine() {
        StringBuilder line = new StringBuilder();
        line.append(id == APPLICATION ? "application" : "execution " + id + " \"" + description + "\"");
        line.append(String.format(Locale.ROOT, " took %.3f s: ", seconds()));
        line.append(size(Counters.LOCAL)).append(" local, ");
        line.append(size(Counters.PEER)).append(" from peers, ");
        line.append(size(Counters.ORIGIN)).append(" from the origin; ");
        int tasks = readingTasks - cachedTasks;
        line.append(nodeLocalTasks).append(" of ").append(tasks).append(" reading tasks NODE_LOCAL");
        if (tasks > 0) {
            line.append(String.format(Locale.ROOT, " (%.0f %%)", 100.0 * nodeLocalTasks / tasks));
        }
        if (cachedTasks > 0) {
            line.append(", ").append(cachedTasks).append(" more read what their executor had cached");
        }
        long fallbacks = bytes.get(Counters.FALLBACKS);
        line.append("; ")
                .append(fallbacks == Counters.UNKNOWN ? "unknown" : fallbacks)
                .append(" fallbacks");
        Map<String, Long> reasons = bytes.below(Counters.FALLBACKS);
        if (!reasons.isEmpty()) {
            line.append(' ').append(reasons);
        }
        if (sharedWith > 0) {
            line.append("; bytes shared with ").append(sharedWith).append(" other executions at the same time");
        }
        if (missingReports > 0) {
            line.append("; without the last report of ").append(missingReports).append(" executors");
        }
        return line.toString();
    }

    /** One JSON object, without a line feed. Bytes that could not be measured are null. */
    String toJson(String applicationId) {
        StringWriter text = new StringWriter();
        try (JsonGenerator json = new JsonFactory().createGenerator(text)) {
            json.writeStartObject();
            json.writeStringField("kind", id == APPLICATION ? "application" : "sql_execution");
            json.writeStringField("application", applicationId);
            if (id != APPLICATION) {
                json.writeNumberField("execution", id);
                json.writeStringField("description", description);
            }
            json.writeNumberField("started_millis", startMillis);
            json.writeNumberField("seconds", seconds());
            bytes(json, "local_bytes", Counters.LOCAL);
            bytes(json, "inline_bytes", Counters.INLINE);
            bytes(json, "peer_bytes", Counters.PEER);
            bytes(json, "origin_bytes", Counters.ORIGIN);
            bytes(json, "direct_bytes", Counters.DIRECT);
            bytes(json, "fallbacks", Counters.FALLBACKS);
            json.writeObjectFieldStart("fallback_reasons");
            for (Map.Entry<String, Long> reason :
                    bytes.below(Counters.FALLBACKS).entrySet()) {
                json.writeNumberField(reason.getKey(), reason.getValue());
            }
            json.writeEndObject();
            json.writeNumberField("reading_tasks", readingTasks);
            json.writeNumberField("node_local_tasks", nodeLocalTasks);
            json.writeNumberField("executor_cached_tasks", cachedTasks);
            if (readingTasks > cachedTasks) {
                json.writeNumberField("node_local_share", (double) nodeLocalTasks / (readingTasks - cachedTasks));
            } else {
                json.writeNullField("node_local_share");
            }
            json.writeNumberField("shared_with", sharedWith);
            json.writeNumberField("missing_reports", missingReports);
            json.writeEndObject();
        } catch (IOException e) {
            throw new IllegalStateException("writing to memory cannot fail", e);
        }
        return text.toString();
    }

    private double seconds() {
        return Math.max(0, endMillis - startMillis) / 1000.0;
    }

    private void bytes(JsonGenerator json, String field, String counter) throws IOException {
        if (bytes.get(counter) == Counters.UNKNOWN) {
            json.writeNullField(field);
        } else {
            json.writeNumberField(field, bytes.get(counter));
        }
    }

    private String size(String counter) {
        long value = bytes.get(counter);
        if (value == Counters.UNKNOWN) {
            return "unknown";
        }
        String[] units = {"B", "KiB", "MiB", "GiB", "TiB"};
        double scaled = value;
        int unit = 0;
        while (scaled >= 1024 && unit < units.length - 1) {
            scaled /= 1024;
            unit++;
        }
        return unit == 0 ? value + " B" : String.format(Locale.ROOT, "%.1f %s", scaled, units[unit]);
    }
}
