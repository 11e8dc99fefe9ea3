package io.cachelet.hadoop.contract;

import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.contract.AbstractContractVectoredReadTest;
import org.apache.hadoop.fs.contract.AbstractFSContract;
import org.junit.runner.RunWith;
import org.junit.runners.Parameterized;

/** Vectored reads into direct and heap buffers; apart from the other suites, because Hadoop 3.3.4 has none. */
@RunWith(Parameterized.class)
public class VectoredReadSuite extends AbstractContractVectoredReadTest {
  public VectoredReadSuite(String bufferType) {
    super(bufferType);
  }

  @Override
  protected AbstractFSContract createContract(Configuration conf) {
    return new Setup.Contract(conf);
  }
}
