package io.cachelet.client;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;

import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Paths;
import org.junit.Test;

/** The fingerprint is the daemon's, whichever language computes it. */
public class StoreFingerprintTest {
    @Test
    public void fingerprintsAreThoseOfTheCommittedVectors() throws Exception {
        int rows = 0;
        for (String row : Files.readAllLines(
                Paths.get("../../locality/protocol/tests/vectors/store_fingerprints.tsv"), StandardCharsets.UTF_8)) {
            if (row.startsWith("#")) {
                continue;
            }
            String[] columns = row.split("\t", -1);
            byte[] fingerprint =
                    StoreFingerprint.of(columns[0], columns[1], columns[2], columns[3], columns[4].equals("true"));
            assertEquals(row, columns[5], hex(fingerprint));
            rows++;
        }
        assertEquals(5, rows);
    }

    @Test
    public void anUnknownSchemeIsRefused() {
        assertThrows(IllegalArgumentException.class, () -> StoreFingerprint.of("gs", "", "", "bucket", false));
    }

    private static String hex(byte[] bytes) {
        StringBuilder hex = new StringBuilder();
        for (byte b : bytes) {
            hex.append(String.format("%02x", b));
        }
        return hex.toString();
    }
}
