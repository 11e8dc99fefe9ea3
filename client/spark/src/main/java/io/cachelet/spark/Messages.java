package io.cachelet.spark;

import io.cachelet.client.WorkerInfo;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.Map;

/**
 * What executors send to the driver: maps of the JDK's own classes, which deserialise whichever class loader the jar
 * came with. Unknown keys are ignored, so that executors and driver may be of different versions.
 */
final class Messages {
    static final String KIND = "kind";
    static final String REGISTRATION = "registration";
    static final String REPORT = "report";
    static final String EXECUTOR = "executor";
    static final String HOST = "host";
    static final String NODE = "node";
    static final String SERVICE = "service";
    static final String WORKER = "worker";
    static final String VERSION = "version";
    static final String TASKS = "tasks";
    static final String COUNTERS = "counters";
    static final String STOCK_BUCKETS = "stock_buckets";

    private Messages() {}

    static HashMap<String, Object> registration(String executorId, String host, String node, WorkerInfo worker) {
        HashMap<String, Object> message = new HashMap<>();
        message.put(KIND, REGISTRATION);
        message.put(EXECUTOR, executorId);
        message.put(HOST, host);
        message.put(NODE, node);
        message.put(SERVICE, worker.serviceAddress);
        message.put(WORKER, worker.workerUuid);
        message.put(VERSION, worker.version);
        return message;
    }

    static HashMap<String, Object> report(
            String executorId, long tasks, Counters counters, ArrayList<String> stockBuckets) {
        HashMap<String, Object> message = new HashMap<>();
        message.put(KIND, REPORT);
        message.put(EXECUTOR, executorId);
        message.put(TASKS, tasks);
        message.put(COUNTERS, counters.toMessage());
        message.put(STOCK_BUCKETS, stockBuckets);
        return message;
    }

    static String text(Map<?, ?> message, String key) {
        Object value = message.get(key);
        return value instanceof String ? (String) value : "";
    }

    static long number(Map<?, ?> message, String key) {
        Object value = message.get(key);
        return value instanceof Long ? (Long) value : 0;
    }
}
