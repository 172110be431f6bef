//! The second half of the table of embedding-server's built-in model. The build script tells the build of embedding-server where the half is.
