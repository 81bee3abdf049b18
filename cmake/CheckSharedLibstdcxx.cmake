# Run after linking: cmake -DREADELF=<readelf> -DLIBRARY=<shared library> -P CheckSharedLibstdcxx.cmake
# Refuses a library with a libstdc++ of its own. In a process that has another, as Python with torch has, the two share
# some symbols and not others: the first number printed into an error message crashes.
execute_process(COMMAND ${READELF} -d ${LIBRARY} OUTPUT_VARIABLE dynamic RESULT_VARIABLE status)
if(NOT status EQUAL 0 OR NOT dynamic MATCHES "NEEDED[^\n]*libstdc\\+\\+")
  file(REMOVE ${LIBRARY})
  message(FATAL_ERROR "${LIBRARY}: the C++ compiler linked libstdc++ into it, which crashes Python; "
                      "configure again in an empty folder with a compiler that does not, such as CXX=/usr/bin/g++")
endif()
