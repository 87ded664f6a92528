# Packages: `scripts/make-packages` makes a Debian package and a tar.gz out of an ordinary build. Both hold the command
# with its manual and completion, the libraries, headers and what CMake and pkg-config need to find them.
set(CPACK_GENERATOR DEB TGZ)
set(CPACK_PACKAGE_NAME stquant)
set(CPACK_PACKAGE_VENDOR "The stquant developers")
set(CPACK_PACKAGE_CONTACT "The stquant developers")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGE_DESCRIPTION "stquant keeps the moments of Adam in 2 to 8 bits a value instead of 32,\n\
under a cap on the bytes of all of them. This package has the library with\n\
its headers, and the command, which trains GPT-2 and Vision Transformers\n\
on a CPU.")
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_PACKAGE_FILE_NAME stquant-${PROJECT_VERSION}-${CMAKE_SYSTEM_NAME}-${CMAKE_SYSTEM_PROCESSOR})
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_CHECKSUM SHA256)

set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT) # stquant_0.1.0_amd64.deb
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON) # the libraries that the files are linked with, as dpkg-shlibdeps finds them
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${PROJECT_BINARY_DIR})
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)

include(GNUInstallDirs)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR} RENAME copyright)
install(FILES ${PROJECT_SOURCE_DIR}/CHANGELOG.md ${PROJECT_SOURCE_DIR}/CITATION.cff DESTINATION ${CMAKE_INSTALL_DOCDIR})
include(CPack)
