package io.cachelet.bench;

import io.cachelet.client.CacheletClient;
import io.cachelet.client.CacheletObject;
import io.cachelet.client.ClientOptions;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.OutputStream;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Paths;
import java.nio.file.StandardOpenOption;
import java.util.concurrent.TimeUnit;
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
 * The same bytes read by different means, all from the page cache. An operation is a whole pass of many reads, so that the
 * baseline's process, which is asked once a pass, is not charged for the asking.
 */
@State(Scope.Thread)
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.MICROSECONDS)
@Warmup(iterations = 2, time = 500, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 3, time = 700, timeUnit = TimeUnit.MILLISECONDS)
public class Reads {
  /** Ranges of a vectored read, and bytes of each: those of a Parquet reader that takes some columns. */
  private static final int RANGES = 100;

  /** What is read: {@code PIECE COUNT next|random}. */
  @Param({"1048576 300 next", "65536 1000 random", "32768 1000 random", "4096 10000 random"})
  public String pass;

  private int piece;
  private int count;
  private boolean random;
  private long pieces;
  private long state;

  private CacheletClient client;
  private CacheletObject object;
  private FileChannel channel;
  private Process baseline;
  private OutputStream asked;
  private BufferedReader answered;

  private ByteBuffer direct;
  private byte[] array;
  private long[] positions;
  private int[] lengths;
  private ByteBuffer[] buffers;

  @Setup(Level.Trial)
  public void open() throws IOException {
    String[] words = pass.split(" ");
    piece = Integer.parseInt(words[0]);
    count = Integer.parseInt(words[1]);
    random = words[2].equals("random");
    client = CacheletClient.create(new ClientOptions().socketDir(System.getProperty("bench.socket.dir")));
    object = client.open(System.getProperty("bench.uri"), null, -1, null, null, 0, 0);
    pieces = object.sizeBytes() / piece;
    String file = System.getProperty("bench.file");
    channel = FileChannel.open(Paths.get(file), StandardOpenOption.READ);
    baseline = new ProcessBuilder(System.getProperty("bench.pread"), file)
        .redirectError(ProcessBuilder.Redirect.INHERIT).start();
    asked = baseline.getOutputStream();
    answered = new BufferedReader(new InputStreamReader(baseline.getInputStream(), StandardCharsets.US_ASCII));
    direct = ByteBuffer.allocateDirect(piece);
    array = new byte[piece];
    positions = new long[RANGES];
    lengths = new int[RANGES];
    buffers = new ByteBuffer[RANGES];
    for (int i = 0; i < RANGES; i++) {
      lengths[i] = piece;
      buffers[i] = ByteBuffer.allocateDirect(piece);
    }
  }

  @Setup(Level.Iteration)
  public void seed() {
    state = 0x9e3779b97f4a7c15L;
  }

  @TearDown(Level.Trial)
  public void close() throws Exception {
    client.close();
    channel.close();
    asked.close();
    baseline.waitFor();
  }

  /** Where the {@code i}th read of a pass begins. */
  private long position(int i) {
    if (!random) {
      return i % pieces * piece;
    }
    state ^= state << 13;
    state ^= state >>> 7;
    state ^= state << 17;
    return (state >>> 1) % pieces * piece;
  }

  private static void whole(int read, int piece) {
    if (read != piece) {
      throw new IllegalStateException(read + " bytes of " + piece);
    }
  }

  @Benchmark
  public void cPread() throws IOException {
    asked.write((pass + " " + (state | 1L << 62) + "\n").replace("-", "").getBytes(StandardCharsets.US_ASCII));
    asked.flush();
    if (answered.readLine() == null) {
      throw new IOException("the baseline has ended");
    }
  }

  @Benchmark
  public void fileChannelDirect() throws IOException {
    for (int i = 0; i < count; i++) {
      direct.clear();
      whole(channel.read(direct, position(i)), piece);
    }
  }

  @Benchmark
  public void fileChannelArray() throws IOException {
    ByteBuffer wrapped = ByteBuffer.wrap(array);
    for (int i = 0; i < count; i++) {
      wrapped.clear();
      whole(channel.read(wrapped, position(i)), piece);
    }
  }

  @Benchmark
  public void cacheletDirect() throws IOException {
    for (int i = 0; i < count; i++) {
      direct.clear();
      whole(object.read(position(i), direct), piece);
    }
  }

  @Benchmark
  public void cacheletArray() throws IOException {
    for (int i = 0; i < count; i++) {
      whole(object.read(position(i), array, 0, piece), piece);
    }
  }

  /** As many reads in calls of {@link #RANGES} ranges; each into a buffer of its own, as {@link #hundredReads}. */
  @Benchmark
  public void cacheletVectored() throws IOException {
    for (int i = 0; i + RANGES <= count; i += RANGES) {
      for (int range = 0; range < RANGES; range++) {
        positions[range] = position(i + range);
        buffers[range].clear();
      }
      object.readVectored(positions, lengths, buffers);
    }
  }

  /** The same ranges, each by a positioned read. */
  @Benchmark
  public void cacheletHundredReads() throws IOException {
    for (int i = 0; i + RANGES <= count; i += RANGES) {
      for (int range = 0; range < RANGES; range++) {
        positions[range] = position(i + range);
        buffers[range].clear();
        whole(object.read(positions[range], buffers[range]), piece);
      }
    }
  }
}
