package io.cachelet.bench;

import io.cachelet.client.CacheletClient;
import io.cachelet.client.CacheletObject;
import io.cachelet.client.ClientOptions;
import java.io.IOException;
import java.lang.management.ManagementFactory;
import java.lang.management.ThreadMXBean;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.TimeUnit;
import org.openjdk.jmh.annotations.AuxCounters;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;

/**
 * The same bytes of one cached file, in the page cache, by different means. An operation reads them twice, by the means
 * and by what it is compared with, a few milliseconds each: what disturbs the machine disturbs both.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 2, time = 1)
@Measurement(iterations = 4, time = 1)
public class Reads {
  private static final int PASS_BYTES = 16 << 20;
  private static final int RANGES = 100;
  private static final ThreadMXBean THREADS = ManagementFactory.getThreadMXBean();

  /** What the passes took so far, in nanoseconds of the clock and of the processor, in user mode and in the kernel. */
  @State(Scope.Thread)
  @AuxCounters(AuxCounters.Type.EVENTS)
  public static class Taken {
    public long elapsed;
    public long elapsedOfBaseline;
    public long cpu;
    public long cpuOfBaseline;
    public long bytes;
  }

  private interface Pass {
    void run() throws IOException;
  }

  /** Bytes of a read, and where it is: {@code next}, one after the other, or {@code random}. */
  @Param({"1048576 next", "65536 random", "4096 random"})
  public String pattern;

  private int piece;
  private long[] positions;
  private CacheletClient client;
  private CacheletObject object;
  private FileChannel channel;
  private int descriptor;
  private long offset;

  private ByteBuffer direct;
  private byte[] array;
  private ByteBuffer wrapped;
  private long[][] rangePositions;
  private int[] lengths;
  private ByteBuffer[] buffers;

  @Setup(Level.Trial)
  public void open() throws IOException {
    piece = Integer.parseInt(pattern.split(" ")[0]);
    client = CacheletClient.create(new ClientOptions().socketDir(System.getProperty("bench.socket.dir")));
    object = client.open(System.getProperty("bench.uri"), null, -1, null, null, 0, 0);
    String file = System.getProperty("bench.file");
    offset = Long.getLong("bench.offset");
    channel = FileChannel.open(Paths.get(file), StandardOpenOption.READ);
    descriptor = Baseline.open(file);
    positions = new long[Math.max(PASS_BYTES / piece / RANGES, 1) * RANGES];
    rangePositions = new long[positions.length / RANGES][];
    direct = ByteBuffer.allocateDirect(piece);
    array = new byte[piece];
    wrapped = ByteBuffer.wrap(array);
    lengths = new int[RANGES];
    Arrays.fill(lengths, piece);
    buffers = new ByteBuffer[RANGES];
    for (int i = 0; i < RANGES; i++) {
      buffers[i] = ByteBuffer.allocateDirect(piece);
    }
  }

  @Setup(Level.Iteration)
  public void choose() {
    Random random = new Random();
    long pieces = object.sizeBytes() / piece;
    for (int i = 0; i < positions.length; i++) {
      positions[i] = (pattern.endsWith("random") ? random.nextInt((int) pieces) : i % pieces) * piece;
    }
    for (int i = 0; i < rangePositions.length; i++) {
      rangePositions[i] = Arrays.copyOfRange(positions, i * RANGES, (i + 1) * RANGES);
    }
  }

  @TearDown(Level.Trial)
  public void close() throws IOException {
    client.close();
    channel.close();
  }

  private void compare(Taken taken, Pass baseline, Pass means) throws IOException {
    long time = System.nanoTime();
    long cpu = THREADS.getCurrentThreadCpuTime();
    baseline.run();
    long cpuBetween = THREADS.getCurrentThreadCpuTime();
    long timeBetween = System.nanoTime();
    means.run();
    taken.elapsed += System.nanoTime() - timeBetween;
    taken.cpu += THREADS.getCurrentThreadCpuTime() - cpuBetween;
    taken.elapsedOfBaseline += timeBetween - time;
    taken.cpuOfBaseline += cpuBetween - cpu;
    taken.bytes += (long) positions.length * piece;
  }

  private static void expect(int read, int wanted) {
    if (read != wanted) {
      throw new IllegalStateException(read + " where " + wanted + " were to be read");
    }
  }

  private void cPread() {
    expect(Baseline.read(descriptor, offset, positions, piece, direct), positions.length);
  }

  private void positionedReads() throws IOException {
    for (int i = 0; i < positions.length; i++) {
      ByteBuffer buffer = buffers[i % RANGES];
      buffer.clear();
      expect(object.read(positions[i], buffer), piece);
    }
  }

  @Benchmark
  public void cacheletDirect(Taken taken) throws IOException {
    compare(taken, this::cPread, () -> {
      for (long position : positions) {
        direct.clear();
        expect(object.read(position, direct), piece);
      }
    });
  }

  @Benchmark
  public void cacheletArray(Taken taken) throws IOException {
    compare(taken, this::cPread, () -> {
      for (long position : positions) {
        expect(object.read(position, array, 0, piece), piece);
      }
    });
  }

  @Benchmark
  public void fileChannelDirect(Taken taken) throws IOException {
    compare(taken, this::cPread, () -> {
      for (long position : positions) {
        direct.clear();
        expect(channel.read(direct, offset + position), piece);
      }
    });
  }

  @Benchmark
  public void fileChannelArray(Taken taken) throws IOException {
    compare(taken, this::cPread, () -> {
      for (long position : positions) {
        wrapped.clear();
        expect(channel.read(wrapped, offset + position), piece);
      }
    });
  }

  /** Compared with as many positioned reads into the same buffers. */
  @Benchmark
  public void cacheletVectored(Taken taken) throws IOException {
    compare(taken, this::positionedReads, () -> {
      for (long[] ranges : rangePositions) {
        for (ByteBuffer buffer : buffers) {
          buffer.clear();
        }
        object.readVectored(ranges, lengths, buffers);
      }
    });
  }
}
