# cmake -DVERSION=<version> -DPACKAGE=<folder of the Python package> -DOUTPUT=<header> -P Interface.cmake
# Writes what the Python package and the libraries under it must agree on: the version, and digests of the files that say
# what Python calls. prulong/_library.py computes the same.
file(SHA256 ${PACKAGE}/_C.pyi module)
file(SHA256 ${PACKAGE}/ops.py operators)
string(SUBSTRING ${module} 0 8 module)
string(SUBSTRING ${operators} 0 8 operators)
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define PRULONG_INTERFACE \"${VERSION}-${module}-${operators}\"\n")
