package io.cachelet.locality;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.ByteArrayOutputStream;
import java.io.FilterInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.net.HttpURLConnection;
import java.net.Proxy;
import java.net.URL;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.TimeUnit;

/**
 * {@code POST /v1/locations} of the locality service.
 *
 * <p>What comes back is not trusted: its size and the time it takes are bounded, whatever is malformed is an error, and
 * what is well formed but wrong becomes tiles without nodes. Not thread-safe; blocks, so only background threads call
 * it.
 */
final class LocationService {
    /** The service's default of {@code max_request_paths}. */
    static final int MAX_PATHS = 10_000;

    private static final int CONNECT_TIMEOUT_MILLIS = 1_000;
    private static final int READ_TIMEOUT_MILLIS = 2_000;
    /** For a whole answer: a service that trickles does not hold the thread. */
    private static final long ANSWER_TIMEOUT_NANOS = TimeUnit.SECONDS.toNanos(5);
    /** The service's answers are bounded to 200,000 blocks of at most four nodes. */
    private static final long MAX_ANSWER_BYTES = 128L << 20;
    /**
     * Half of the service's default of {@code max_request_body_bytes}; the rest of the paths go into a next request.
     */
    private static final int MAX_REQUEST_BYTES = 8 << 20;

    private static final JsonFactory JSON = new JsonFactory();

    private int maxPaths = MAX_PATHS;

    /** A file to locate. */
    static class Path {
        final String uri;
        final String etag;
        final long length;

        Path(String uri, String etag, long length) {
            this.uri = uri;
            this.etag = etag;
            this.length = length;
        }
    }

    /** One object's answer. */
    static final class Answer {
        final Tiles tiles;
        /** The request had too many blocks for this one: ask again, in a smaller request. */
        final boolean askAgain;

        Answer(Tiles tiles, boolean askAgain) {
            this.tiles = tiles;
            this.askAgain = askAgain;
        }
    }

    /** What came of a request. */
    static final class Reply {
        /** By URI. */
        final Map<String, Answer> answers = new HashMap<>();
        /** How many of the paths went into the request: the first ones. */
        final int asked;

        Reply(int asked) {
            this.asked = asked;
        }
    }

    /** How many paths go into one request; falls when the service takes fewer. */
    int maxPaths() {
        return maxPaths;
    }

    /**
     * Asks for the first of {@code paths}, as many as fit into one request.
     *
     * @param service {@code host:port} or a URL
     * @param candidates the nodes that may be named; null for all of them
     * @throws IOException if the service could not be reached, was too slow or made no sense
     */
    Reply locate(String service, List<String> candidates, List<? extends Path> paths) throws IOException {
        Map<String, Path> asked = new HashMap<>();
        byte[] body = request(candidates, paths, asked);
        URL url = new URL((service.contains("://") ? service : "http://" + service) + "/v1/locations");
        if (!url.getProtocol().equals("http") && !url.getProtocol().equals("https")) {
            throw new IOException("the locality service's address is no host:port and no http URL: " + service);
        }
        HttpURLConnection connection = (HttpURLConnection) url.openConnection(Proxy.NO_PROXY);
        connection.setConnectTimeout(CONNECT_TIMEOUT_MILLIS);
        connection.setReadTimeout(READ_TIMEOUT_MILLIS);
        connection.setInstanceFollowRedirects(false);
        connection.setUseCaches(false);
        connection.setRequestMethod("POST");
        connection.setRequestProperty("Content-Type", "application/json");
        connection.setRequestProperty("Connection", "keep-alive");
        connection.setDoOutput(true);
        boolean whole = false;
        try {
            try (OutputStream out = connection.getOutputStream()) {
                out.write(body);
            }
            int status = connection.getResponseCode();
            if (status != HttpURLConnection.HTTP_OK) {
                refused(status, asked.size(), url);
            }
            Reply reply = new Reply(asked.size());
            try (InputStream in = new Bounded(connection.getInputStream())) {
                answers(in, asked, reply.answers);
                whole = true;
            }
            return reply;
        } catch (RuntimeException e) {
            // HttpURLConnection throws these for malformed answers.
            throw new IOException("the answer of " + url + " makes no sense: " + e, e);
        } finally {
            if (!whole) {
                // What is left of an answer is not waited for: the next request takes a new connection.
                connection.disconnect();
            }
        }
    }

    private void refused(int status, int paths, URL url) throws IOException {
        boolean tooLarge =
                status == HttpURLConnection.HTTP_BAD_REQUEST || status == HttpURLConnection.HTTP_ENTITY_TOO_LARGE;
        if (tooLarge && paths > 1) {
            // Its limits are settings: this one may be lower than the default.
            maxPaths = Math.max(1, paths / 4);
        }
        throw new IOException(url + " answered HTTP " + status + " to a request of " + paths + " paths");
    }

    private byte[] request(List<String> candidates, List<? extends Path> paths, Map<String, Path> asked)
            throws IOException {
        ByteArrayOutputStream body = new ByteArrayOutputStream(1 << 10);
        try (JsonGenerator json = JSON.createGenerator(body)) {
            json.writeStartObject();
            if (candidates != null) {
                json.writeArrayFieldStart("candidates");
                for (String node : candidates) {
                    json.writeString(node);
                }
                json.writeEndArray();
            }
            json.writeArrayFieldStart("paths");
            for (Path path : paths) {
                if (asked.size() >= maxPaths || body.size() > MAX_REQUEST_BYTES) {
                    break;
                }
                asked.put(path.uri, path);
                json.writeStartObject();
                json.writeStringField("path", path.uri);
                if (path.etag != null && !path.etag.isEmpty()) {
                    json.writeStringField("etag", path.etag);
                }
                json.writeNumberField("size_bytes", path.length);
                json.writeEndObject();
            }
            json.writeEndArray();
            json.writeEndObject();
        }
        return body.toByteArray();
    }

    private static void answers(InputStream in, Map<String, Path> asked, Map<String, Answer> answers)
            throws IOException {
        Map<String, String> names = new HashMap<>();
        try (JsonParser json = JSON.createParser(in)) {
            expect(json.nextToken(), JsonToken.START_OBJECT);
            while (json.nextToken() == JsonToken.FIELD_NAME) {
                boolean locations = json.getCurrentName().equals("locations");
                json.nextToken();
                if (!locations) {
                    json.skipChildren();
                    continue;
                }
                expect(json.currentToken(), JsonToken.START_ARRAY);
                while (json.nextToken() == JsonToken.START_OBJECT) {
                    location(json, asked, answers, names);
                }
                expect(json.currentToken(), JsonToken.END_ARRAY);
            }
            expect(json.currentToken(), JsonToken.END_OBJECT);
            // To the end of the body, so that the connection is used again.
            if (json.nextToken() != null) {
                throw new IOException("there is more behind the answer");
            }
        }
    }

    private static void location(
            JsonParser json, Map<String, Path> asked, Map<String, Answer> answers, Map<String, String> names)
            throws IOException {
        String uri = "";
        boolean known = false;
        boolean tooMany = false;
        List<Block> blocks = new ArrayList<>();
        while (json.nextToken() == JsonToken.FIELD_NAME) {
            String field = json.getCurrentName();
            JsonToken value = json.nextToken();
            if (field.equals("path") && value == JsonToken.VALUE_STRING) {
                uri = json.getText();
            } else if (field.equals("known")) {
                known = value == JsonToken.VALUE_TRUE;
            } else if (field.equals("error") && value == JsonToken.START_OBJECT) {
                tooMany = errorCode(json).equals("too_many_blocks");
            } else if (field.equals("blocks") && value == JsonToken.START_ARRAY) {
                while (json.nextToken() == JsonToken.START_OBJECT) {
                    blocks.add(block(json, names));
                }
                expect(json.currentToken(), JsonToken.END_ARRAY);
            } else {
                json.skipChildren();
            }
        }
        expect(json.currentToken(), JsonToken.END_OBJECT);
        Path path = asked.get(uri);
        if (path == null) {
            return;
        }
        Tiles.Builder tiles = new Tiles.Builder(path.length);
        for (Block block : blocks) {
            tiles.block(block.offset, block.length, block.nodes, block.resident);
        }
        // Alone it was too large for the service; asking again would not help.
        boolean askAgain = tooMany && asked.size() > 1 && !answers.isEmpty();
        answers.put(path.uri, new Answer(known ? tiles.build() : Tiles.unknown(path.length), askAgain));
    }

    private static String errorCode(JsonParser json) throws IOException {
        String code = "";
        while (json.nextToken() == JsonToken.FIELD_NAME) {
            boolean named = json.getCurrentName().equals("code");
            if (json.nextToken() == JsonToken.VALUE_STRING && named) {
                code = json.getText();
            } else {
                json.skipChildren();
            }
        }
        expect(json.currentToken(), JsonToken.END_OBJECT);
        return code;
    }

    private static Block block(JsonParser json, Map<String, String> names) throws IOException {
        Block block = new Block();
        while (json.nextToken() == JsonToken.FIELD_NAME) {
            String field = json.getCurrentName();
            JsonToken value = json.nextToken();
            if (field.equals("offset") && value == JsonToken.VALUE_NUMBER_INT) {
                block.offset = json.getLongValue();
            } else if (field.equals("length") && value == JsonToken.VALUE_NUMBER_INT) {
                block.length = json.getLongValue();
            } else if (field.equals("nodes") && value == JsonToken.START_ARRAY) {
                while (json.nextToken() == JsonToken.START_OBJECT) {
                    node(json, block, names);
                }
                expect(json.currentToken(), JsonToken.END_ARRAY);
            } else {
                json.skipChildren();
            }
        }
        expect(json.currentToken(), JsonToken.END_OBJECT);
        return block;
    }

    private static void node(JsonParser json, Block block, Map<String, String> names) throws IOException {
        while (json.nextToken() == JsonToken.FIELD_NAME) {
            String field = json.getCurrentName();
            JsonToken value = json.nextToken();
            if (field.equals("node") && value == JsonToken.VALUE_STRING) {
                block.nodes.add(names.computeIfAbsent(json.getText(), name -> name));
            } else if (field.equals("state") && value == JsonToken.VALUE_STRING) {
                block.resident |= json.getText().equals("resident");
            } else {
                json.skipChildren();
            }
        }
        expect(json.currentToken(), JsonToken.END_OBJECT);
    }

    private static void expect(JsonToken found, JsonToken wanted) throws IOException {
        if (found != wanted) {
            throw new IOException("there is " + found + " where the protocol has " + wanted);
        }
    }

    private static final class Block {
        long offset = -1;
        long length = -1;
        boolean resident;
        final List<String> nodes = new ArrayList<>(2);
    }

    /** An answer that may be only so long, and take only so long. */
    private static final class Bounded extends FilterInputStream {
        private final long deadline = System.nanoTime() + ANSWER_TIMEOUT_NANOS;
        private long left = MAX_ANSWER_BYTES;

        Bounded(InputStream in) {
            super(in);
        }

        @Override
        public int read() throws IOException {
            int read = super.read();
            count(read < 0 ? read : 1);
            return read;
        }

        @Override
        public int read(byte[] buffer, int offset, int length) throws IOException {
            int read = super.read(buffer, offset, length);
            count(read);
            return read;
        }

        private void count(int read) throws IOException {
            left -= Math.max(read, 0);
            if (left < 0) {
                throw new IOException("the answer is longer than " + MAX_ANSWER_BYTES + " bytes");
            }
            if (System.nanoTime() > deadline) {
                throw new IOException("the answer took more than " + ANSWER_TIMEOUT_NANOS / 1_000_000_000L + " s");
            }
        }
    }
}
