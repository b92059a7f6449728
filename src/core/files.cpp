#include "mirabelle/core/files.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "mirabelle/core/error.h"

namespace mirabelle {
namespace fs = std::filesystem;

void sync_to_disk(const fs::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  MIRABELLE_CHECK(descriptor >= 0, path.string(), ": cannot open: ", std::strerror(errno));
  const int status = ::fsync(descriptor);
  const int error = errno;
  ::close(descriptor);
  MIRABELLE_CHECK_DATA(status == 0, path.string(),
                       ": cannot write to disk: ", std::strerror(error));
}

AtomicPath::AtomicPath(fs::path target) : target_(std::move(target)) {
  if (!target_.has_filename()) target_ = target_.parent_path();  // "folder/" means "folder"
  partial_ = target_;
  partial_ += ".partial";
  std::error_code error;
  if (target_.has_parent_path()) fs::create_directories(target_.parent_path(), error);
  MIRABELLE_CHECK(!error, target_.parent_path().string(), ": cannot create: ", error.message());
  fs::remove_all(partial_, error);
  MIRABELLE_CHECK(!error, partial_.string(), ": cannot remove: ", error.message());
}

AtomicPath::~AtomicPath() {
  std::error_code ignored;
  if (!committed_) fs::remove_all(partial_, ignored);
}

void AtomicPath::commit() {
  const bool is_folder = fs::is_directory(partial_);
  if (is_folder) {
    for (const auto& entry : fs::recursive_directory_iterator(partial_)) {
      if (entry.is_regular_file()) sync_to_disk(entry.path());
    }
  }
  sync_to_disk(partial_);
  std::error_code error;
  // A rename replaces a file, but not a full folder: that changes places with the new one first, so
  // that at every moment a whole folder stands at the target.
  if (is_folder && fs::exists(target_) &&
      ::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) == 0) {
    fs::remove_all(partial_, error);
  } else {
    if (is_folder) fs::remove_all(target_, error);  // a file system that cannot exchange
    fs::rename(partial_, target_, error);
  }
  MIRABELLE_CHECK(!error, target_.string(), ": cannot put in place: ", error.message());
  committed_ = true;
}

void check_writable(const fs::path& path) {
  const AtomicPath target(path);
  const std::ofstream file(target.path());
  MIRABELLE_CHECK_DATA(file && !fs::is_directory(path), path.string(), ": cannot write: ",
                       fs::is_directory(path) ? "is a folder" : std::strerror(errno));
}

bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string_view::npos;
}

std::string read_text_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  MIRABELLE_CHECK_DATA(file && !fs::is_directory(path), path.string(), ": cannot read: ",
                       fs::is_directory(path) ? "is a folder" : std::strerror(errno));
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_text_file(const fs::path& path, std::string_view text) {
  AtomicPath target(path);
  std::ofstream file(target.path(), std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  MIRABELLE_CHECK_DATA(file, path.string(), ": cannot write: ", std::strerror(errno));
  target.commit();
}

std::string sha256_of_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  MIRABELLE_CHECK_DATA(file && !fs::is_directory(path), path.string(), ": cannot read: ",
                       fs::is_directory(path) ? "is a folder" : std::strerror(errno));
  Sha256 sha;
  std::vector<char> piece(1 << 20);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    sha.update(piece.data(), static_cast<size_t>(file.gcount()));
  }
  return sha.hex_digest();
}

Sha256::Sha256() : context_(EVP_MD_CTX_new()) {
  MIRABELLE_CHECK(
      context_ && EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_), EVP_sha256(), nullptr) == 1,
      "OpenSSL offers no SHA-256");
}

Sha256::~Sha256() { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_)); }

void Sha256::update(const void* data, size_t bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), data, bytes);
}

std::string Sha256::hex_digest() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_), digest, &size);
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += kHex[digest[i] >> 4];
    text += kHex[digest[i] & 15];
  }
  return text;
}

}  // namespace mirabelle
