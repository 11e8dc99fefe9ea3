package io.cachelet.hadoop;

import static org.junit.Assert.assertEquals;
import static org.junit.Assert.assertThrows;
import static org.junit.Assert.assertTrue;

import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.junit.Test;

public class ReadSettingsTest {
    @Test
    public void everySettingHasADefaultThatWorks() {
        ReadSettings settings = new ReadSettings(new Configuration(false));
        assertTrue(settings.enabled);
        assertTrue(settings.freshness.isStrict());
        assertEquals(500, settings.requestTimeoutMinMillis);
        assertEquals(30_000, settings.bypassPeriodMillis);
        assertEquals(8 << 20, settings.readaheadBytes);
    }

    @Test
    public void aValueThatCannotBeUnderstoodIsRefusedWithKeyAndValue() {
        String[][] wrong = {
            {SettingKeys.ENABLED, "maybe"},
            {SettingKeys.VERIFY_READS, "1"},
            {SettingKeys.REQUEST_TIMEOUT_MIN, "500"},
            {SettingKeys.REQUEST_TIMEOUT_MIN, "0ms"},
            {SettingKeys.BYPASS_PERIOD, "soon"},
            {SettingKeys.BYPASS_PERIOD, "99999999999999999999s"},
            {SettingKeys.READAHEAD, "-1"},
            {SettingKeys.READAHEAD, "much"},
            {SettingKeys.MAX_STALENESS, "s3a://lake/tpch/"},
            {SettingKeys.MAX_STALENESS, "lake=60s"},
            {SettingKeys.MAX_STALENESS, "s3a://lake/=60"},
            {SettingKeys.WRITE_ONCE, "*.parquet"},
            {SettingKeys.WRITE_ONCE, "s3a://lake/[a"},
        };
        for (String[] setting : wrong) {
            Configuration conf = new Configuration(false);
            conf.set(setting[0], setting[1]);
            String message = assertThrows(setting[1], IllegalArgumentException.class, () -> new ReadSettings(conf))
                    .getMessage();
            String value = setting[1].substring(setting[1].lastIndexOf('=') + 1);
            assertTrue(message, message.contains(setting[0]) && message.contains(value));
        }
    }

    @Test
    public void theLongestPrefixCountsAndWriteOnceGoesFirst() {
        Freshness freshness = new Freshness("s3a://lake/=60s, s3a://lake/t/=5s", "s3a://lake/t/*.parquet");
        assertEquals(60_000_000_000L, freshness.maxAgeNanos(new Path("s3a://lake/x")));
        assertEquals(5_000_000_000L, freshness.maxAgeNanos(new Path("s3a://lake/t/x")));
        assertEquals(24 * 3600 * 1_000_000_000L, freshness.maxAgeNanos(new Path("s3a://lake/t/a/x.parquet")));
        assertEquals(0, freshness.maxAgeNanos(new Path("s3a://other/x")));
    }

    @Test
    public void whatIsOverwrittenByDesignIsAlwaysAskedFor() {
        Freshness freshness = new Freshness("s3a://lake/=60s", "s3a://lake/*");
        String[] names = {
            "t/_delta_log/0.json",
            "t/_SUCCESS",
            "t/.hidden",
            "iceberg/metadata/v1.json",
            "checkpoint/1",
            "checkpoints-a/x",
            "q/offsets/0",
            "q/commits/0",
            "q/state/0/1.delta",
            "q/sources/0/0"
        };
        for (String name : names) {
            assertEquals(name, 0, freshness.maxAgeNanos(new Path("s3a://lake/" + name)));
        }
        assertTrue(freshness.maxAgeNanos(new Path("s3a://lake/t/state=CA/part-0.parquet")) > 0);
    }
}
