// SPDX-License-Identifier: MIT
#include "common/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "common/error.h"

namespace prulong {

MappedFile::MappedFile(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    throw Error(path.string() + ": cannot open: " + std::strerror(errno) + "; check the path and its permissions");
  struct stat info {};
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    ::close(fd);
    throw Error(path.string() +
                ": expected a regular file, found something else (a folder, a device or a pipe); check the path");
  }
  size_ = static_cast<size_t>(info.st_size);
  if (size_ > 0) {  // mmap refuses length 0
    // NORESERVE: a writable private mapping of a big model must not count against the memory limit.
    data_ = ::mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  }
  const int reason = errno;
  ::close(fd);  // the mapping keeps the file
  if (data_ == MAP_FAILED) {
    data_ = nullptr;
    throw Error(path.string() + ": cannot map into memory: " + std::strerror(reason) +
                "; copy it to a local disk, or free memory");
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

}  // namespace prulong
