package io.cachelet.hadoop;

import org.apache.hadoop.fs.PathIOException;

/**
 * The object is no longer the generation that the stream was opened on, on a file system that has no error of its own
 * for that. Opening the file again reads the new one.
 */
public class GenerationChangedException extends PathIOException {
    private static final long serialVersionUID = 1L;

    GenerationChangedException(String path, String operation, String detail, Throwable cause) {
        super(path, detail, cause);
        setOperation(operation);
    }
}
