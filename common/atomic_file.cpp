// SPDX-License-Identifier: MIT
#include "common/atomic_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "common/error.h"

namespace prulong {
namespace {

namespace fs = std::filesystem;

const char* remedy(int reason) {
  switch (reason) {
    case ENOSPC:
    case EDQUOT:
      return "free disk space and run again";
    case EFBIG:
      return "raise the limit on the size of files (ulimit -f) and run again";
    case EROFS:
    case EACCES:
    case EPERM:
      return "make its folder writable, or choose another";
    case ENOENT:
    case ENOTDIR:
      return "create its folder, or choose another";
    case EISDIR:
      return "choose another name";
    default:
      return "mend the disk, or choose another folder";
  }
}

[[noreturn]] void fail(const fs::path& path, const char* what) {
  const int reason = errno;
  throw FileError(reason, path.string() + ": " + what + ": " + std::strerror(reason) +
                              "; what was there is kept: " + remedy(reason));
}

fs::path folder_of(const fs::path& path) { return path.has_parent_path() ? path.parent_path() : "."; }

void sync_folder(const fs::path& folder) {
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

/// Whether `name` still is the file that the descriptor has open.
bool is_open_at(int fd, const fs::path& name) {
  struct stat opened {};
  struct stat named {};
  return ::fstat(fd, &opened) == 0 && ::lstat(name.c_str(), &named) == 0 && opened.st_dev == named.st_dev &&
         opened.st_ino == named.st_ino;
}

/// A file, or a folder with the files in it.
void remove_flat(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(fs::symlink_status(path, ignored))) {
    for (fs::directory_iterator entry(path, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
      ::unlink(entry->path().c_str());
    }
  }
  fs::remove(path, ignored);
}

/// Whether a file's name is one that Unfinished gives for `path`.
bool is_temporary_of(const std::string& name, const fs::path& path) {
  const std::string before = path.filename().string() + ".", after = ".tmp";
  if (!name.starts_with(before) || !name.ends_with(after) || name.size() <= before.size() + after.size()) return false;
  const std::string middle = name.substr(before.size(), name.size() - before.size() - after.size());
  return middle.find_first_not_of("0123456789-") == std::string::npos;
}

/// Removes what killed writers of `path` left: their temporaries, which nobody holds locked any more.
void remove_abandoned(const fs::path& path) {
  std::error_code ignored;
  for (fs::directory_iterator entry(folder_of(path), ignored), end; !ignored && entry != end;
       entry.increment(ignored)) {
    const fs::path name = entry->path();
    if (!is_temporary_of(name.filename().string(), path)) continue;
    int fd = ::open(name.c_str(), O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) fd = ::open(name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) continue;
    if (::flock(fd, LOCK_EX | LOCK_NB) == 0 && is_open_at(fd, name)) remove_flat(name);
    ::close(fd);
  }
}

/// A file or folder that is being written, beside the path that it is for and under a name of its own. It is locked, so
/// that others see that its writer lives, and removed again unless published.
class Unfinished {
 public:
  enum class Kind { kFile, kFolder };

  Unfinished(const fs::path& path, Kind kind) : path_(path) {
    remove_abandoned(path);
    do {
      if (fd_ >= 0) ::close(fd_);
      create(kind);
      if (fd_ >= 0) ::flock(fd_, LOCK_EX);
    } while (fd_ < 0 || !is_open_at(fd_, name_));  // taken, or removed as abandoned before it was locked
  }
  Unfinished(const Unfinished&) = delete;
  Unfinished& operator=(const Unfinished&) = delete;
  ~Unfinished() {
    if (!published_) remove_flat(name_);
    ::close(fd_);
  }

  const fs::path& name() const { return name_; }

  void append(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t written = ::write(fd_, bytes.data(), bytes.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        fail(path_, "cannot write");
      }
      bytes.remove_prefix(static_cast<size_t>(written));
    }
  }

  /// @return false if something that cannot be replaced stands at the path.
  bool publish() {
    // EINVAL: a file system that syncs no folders.
    if (::fsync(fd_) != 0 && errno != EINVAL) fail(path_, "cannot sync");
    published_ = ::rename(name_.c_str(), path_.c_str()) == 0;
    const bool taken = errno == EEXIST || errno == ENOTEMPTY || errno == ENOTDIR || errno == EISDIR;
    if (!published_ && !taken) fail(path_, "cannot rename its temporary");
    if (published_) sync_folder(folder_of(path_));
    return published_;
  }

 private:
  /// Opens the next name, or leaves fd_ below 0 if somebody has it.
  void create(Kind kind) {
    static std::atomic<uint64_t> number{0};
    name_ = path_;
    name_ += "." + std::to_string(::getpid()) + "-" + std::to_string(number++) + ".tmp";
    if (kind == Kind::kFile) {
      fd_ = ::open(name_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
      if (fd_ < 0 && errno != EEXIST) fail(path_, "cannot create its temporary file");
    } else {
      const bool made = ::mkdir(name_.c_str(), 0777) == 0;
      if (!made && errno != EEXIST) fail(path_, "cannot create its temporary folder");
      fd_ = made ? ::open(name_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
      if (made && fd_ < 0 && errno != ENOENT) fail(path_, "cannot open its temporary folder");
    }
  }

  fs::path path_, name_;
  int fd_ = -1;
  bool published_ = false;
};

}  // namespace

void write_file_atomically(const fs::path& path,
                           const std::function<void(const std::function<void(std::string_view)>&)>& write) {
  Unfinished file(path, Unfinished::Kind::kFile);
  write([&](std::string_view bytes) { file.append(bytes); });
  if (!file.publish()) fail(path, "cannot be replaced");
}

void write_file_atomically(const fs::path& path, std::string_view content) {
  write_file_atomically(path, [&](const auto& sink) { sink(content); });
}

bool make_folder_atomically(const fs::path& path, const std::function<void(const fs::path&)>& fill) {
  Unfinished folder(path, Unfinished::Kind::kFolder);
  fill(folder.name());
  return folder.publish();
}

FolderLock::FolderLock(const fs::path& folder) : fd_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  while (fd_ >= 0 && ::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
  }
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace prulong
