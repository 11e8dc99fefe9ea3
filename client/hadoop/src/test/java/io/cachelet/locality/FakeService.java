package io.cachelet.locality;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

/** A locality service on loopback whose answers a test chooses, down to the byte. */
final class FakeService implements AutoCloseable {
    /** Answers one request. */
    interface Behaviour {
        void answer(HttpExchange exchange, JsonNode request) throws Exception;
    }

    private static final ObjectMapper JSON = new ObjectMapper();

    final List<JsonNode> requests = Collections.synchronizedList(new ArrayList<>());
    private final ExecutorService threads = Executors.newCachedThreadPool();
    private final HttpServer server;
    volatile Behaviour behaviour;

    FakeService(Behaviour behaviour) throws IOException {
        this.behaviour = behaviour;
        server = HttpServer.create(new InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 16);
        server.setExecutor(threads);
        server.createContext("/v1/locations", exchange -> {
            JsonNode request = JSON.readTree(exchange.getRequestBody());
            requests.add(request);
            try {
                this.behaviour.answer(exchange, request);
            } catch (Exception e) {
                // A test that has ended interrupts what still waits here.
            } finally {
                exchange.close();
            }
        });
        server.start();
    }

    String address() {
        return "127.0.0.1:" + server.getAddress().getPort();
    }

    /** Each path is one block on these nodes. */
    static Behaviour resident(String... nodes) {
        return (exchange, request) -> {
            StringBuilder body = new StringBuilder("{\"later\":{\"a\":[1]},\"locations\":[");
            for (JsonNode path : request.get("paths")) {
                if (body.charAt(body.length() - 1) == '}') {
                    body.append(',');
                }
                long size = path.get("size_bytes").asLong();
                body.append(location(path.get("path").asText(), size, block(0, size, "resident", nodes)));
            }
            send(exchange, 200, body.append("]}").toString());
        };
    }

    static String location(String path, long size, String... blocks) {
        return "{\"path\":\"" + path + "\",\"known\":true,\"size_bytes\":" + size
                + ",\"block_bytes\":134217728,\"blocks\":[" + String.join(",", blocks) + "]}";
    }

    static String block(long offset, long length, String state, String... nodes) {
        List<String> named = new ArrayList<>();
        for (String node : nodes) {
            named.add("{\"node\":\"" + node + "\",\"state\":\"" + state + "\",\"residency\":\"all\",\"pod_ip\":\"\"}");
        }
        return "{\"index\":0,\"offset\":" + offset + ",\"length\":" + length + ",\"nodes\":[" + String.join(",", named)
                + "]}";
    }

    static Behaviour saying(int status, String body) {
        return (exchange, request) -> send(exchange, status, body);
    }

    static void send(HttpExchange exchange, int status, String body) throws IOException {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        exchange.sendResponseHeaders(status, bytes.length);
        exchange.getResponseBody().write(bytes);
    }

    @Override
    public void close() {
        server.stop(0);
        threads.shutdownNow();
    }
}
