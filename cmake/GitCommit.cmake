# Run at every build: cmake -DSOURCE=<checkout> -DOUTPUT=<header> -P GitCommit.cmake
# Writes the commit that is being built, with "-dirty" after it when tracked files differ; only when that changed, so that
# nothing is compiled in vain. "unknown" outside a checkout.
set(ENV{GIT_OPTIONAL_LOCKS} 0)  # never in the way of a commit at the same time
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=40 --exclude=*
                OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE status ERROR_QUIET)
if(NOT status EQUAL 0 OR NOT EXISTS ${SOURCE}/.git)  # a copy inside another project's checkout is not that project
  set(commit unknown)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define PRULONG_COMMIT \"${commit}\"\n")
