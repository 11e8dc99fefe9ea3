package io.cachelet.hadoop;

import static org.junit.Assert.assertArrayEquals;
import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertFalse;

import com.esotericsoftware.kryo.Kryo;
import com.esotericsoftware.kryo.io.Input;
import com.esotericsoftware.kryo.io.Output;
import com.esotericsoftware.kryo.serializers.JavaSerializer;
import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.ObjectInputStream;
import java.io.ObjectOutputStream;
import java.lang.reflect.Field;
import java.lang.reflect.Modifier;
import java.net.URI;
import org.apache.hadoop.fs.BlockLocation;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.fs.s3a.S3AFileStatus;
import org.apache.hadoop.fs.s3a.S3ALocatedFileStatus;
import org.junit.Test;
import org.objenesis.strategy.StdInstantiatorStrategy;

public class CacheletFileStatusTest {
    private final S3AFileStatus stock =
            new S3AFileStatus(300, 17, new Path("s3a://lake/t/a b+%41"), 128, "me", "\"etag\"", "version");
    private final CacheletFileStatus status = CacheletFileStatus.listed(stock);

    @Test
    public void itKeepsWhatS3aKnowsAndIsEqualToIt() {
        assertEquals(stock.getEtag(), status.toS3AFileStatus().getEtag());
        assertEquals(stock.getVersionId(), status.toS3AFileStatus().getVersionId());
        assertEquals(stock.getLen(), status.toS3AFileStatus().getLen());
        S3ALocatedFileStatus located = new S3ALocatedFileStatus(stock, new BlockLocation[0]);
        assertEquals(located, status);
        assertEquals(status, located);
        assertEquals(located.hashCode(), status.hashCode());
        assertEquals(0, located.compareTo(status));
    }

    @Test
    public void locationsTileTheFileAndNameNobodyWhereNobodyIs() throws Exception {
        BlockLocation[] locations = status.getBlockLocations();
        assertEquals(1, locations.length);
        assertEquals(300, locations[0].getLength());
        assertArrayEquals(new String[0], locations[0].getHosts());
    }

    @Test
    public void javaSerialisationKeepsEverything() throws Exception {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream();
        try (ObjectOutputStream out = new ObjectOutputStream(bytes)) {
            out.writeObject(status);
        }
        try (ObjectInputStream in = new ObjectInputStream(new ByteArrayInputStream(bytes.toByteArray()))) {
            isTheSame((CacheletFileStatus) in.readObject());
        }
    }

    @Test
    public void kryoSerialisationKeepsEverything() {
        Kryo kryo = new Kryo();
        kryo.setInstantiatorStrategy(new Kryo.DefaultInstantiatorStrategy(new StdInstantiatorStrategy()));
        // As Spark has it: a Path's URI does not open its fields to Kryo.
        kryo.addDefaultSerializer(URI.class, new JavaSerializer());
        Output out = new Output(1024, -1);
        kryo.writeClassAndObject(out, status);
        isTheSame((CacheletFileStatus) kryo.readClassAndObject(new Input(out.toBytes())));
    }

    private void isTheSame(CacheletFileStatus copy) {
        assertEquals(status, copy);
        assertEquals(status.getLen(), copy.getLen());
        assertEquals(status.getModificationTime(), copy.getModificationTime());
        assertEquals(status.getEtag(), copy.getEtag());
        assertEquals(status.getVersionId(), copy.getVersionId());
        assertEquals(1, copy.getBlockLocations().length);
    }

    @Test
    public void noFieldLeadsToAFileSystem() {
        for (Class<?> type = CacheletFileStatus.class; type != Object.class; type = type.getSuperclass()) {
            for (Field field : type.getDeclaredFields()) {
                if (!Modifier.isStatic(field.getModifiers())) {
                    assertFalse(field.toString(), FileSystem.class.isAssignableFrom(field.getType()));
                    assertFalse(
                            field.toString(),
                            field.getType() == Object.class || field.getType().isSynthetic());
                    assertFalse(field.toString(), type == CacheletFileStatus.class);
                }
            }
        }
    }
}
