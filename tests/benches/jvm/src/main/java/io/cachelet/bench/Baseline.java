package io.cachelet.bench;

import java.nio.ByteBuffer;

/** C's pread, in a loop: {@code baseline.c}. */
final class Baseline {
  static {
    System.load(System.getProperty("bench.baseline"));
  }

  private Baseline() {}

  /** A descriptor; negative: it cannot be opened. */
  static native int open(String path);

  /** Reads {@code piece} bytes behind {@code offset} at each position; how many reads gave all of them. */
  static native int read(int file, long offset, long[] positions, int piece, ByteBuffer direct);
}
